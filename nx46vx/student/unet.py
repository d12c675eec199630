"""The network: a residual U-Net over a volume (3D), or over each slice with its neighbours (2.5D)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from nx46vx.student.blocks import (
    DepthAttention,
    ResidualBlock,
    SliceAttention,
    SpatialAttention,
    convolution,
    upsampling,
)
from nx46vx.student.channels import channel_count
from nx46vx.student.spec import StudentSpec

#: Share of surface that the untrained network starts from.
PRIOR = 0.08


class ResidualUNet(nn.Module):
    """Encoder and decoder over ``levels`` resolutions; channels double from one to the next.

    ``cell``: the finest level works on cells of so many voxels along each axis, whose grey values are its channels
    (space to depth, so nothing is lost), and gives a logit for each voxel of a cell; 1: on the voxels themselves.
    ``multi_scale``: each level sees the input averaged to its resolution besides what comes from above.
    ``deep_supervision``: logits of the coarser decoder levels too (all but the bottleneck, at most three in all).
    """

    def __init__(
        self, dims: int, inputs: int, base: int, levels: int, *, convolutions: int, cell: int, multi_scale: bool,
        attention: bool, deep_supervision: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dims, self.cell = dims, cell
        inputs *= cell**dims
        width = [base * 2**level for level in range(levels)]
        below, above = range(1, levels), range(levels - 1)
        self._bottleneck = width[-1]
        self.encode = nn.ModuleList(
            [ResidualBlock(dims, width[k] if k else inputs, width[k], convolutions) for k in range(levels)]
        )
        self.down = nn.ModuleList([_down(dims, width[k - 1], width[k]) for k in below])
        self.scales = nn.ModuleList([convolution(dims, inputs, width[k], 3) for k in below] if multi_scale else [])
        self.attend = nn.ModuleList([_attention(dims, width[k]) for k in range(levels)] if attention else [])
        self.up = nn.ModuleList([upsampling(dims, width[k + 1], width[k]) for k in above])
        self.decode = nn.ModuleList([ResidualBlock(dims, width[k], width[k], convolutions) for k in above])
        supervised = min(max(levels - 1, 1), 3) if deep_supervision else 1
        self.heads = nn.ModuleList([convolution(dims, width[k], 1 if k else cell**dims, 1) for k in range(supervised)])
        for head in self.heads:
            nn.init.constant_(head.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    @property
    def bottleneck(self) -> int:
        """Channels at the coarsest level."""
        return self._bottleneck

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Logits (N, 1, ...) at full resolution, then at those of the coarser decoder levels.

        ``x`` (N, inputs, ...); ``keep`` (N, bottleneck): factors of the bottleneck's channels.
        """
        x = to_cells(x, self.cell)
        given, skipped = x, []
        for level, block in enumerate(self.encode):
            if level:
                x = self.down[level - 1](x)
                if len(self.scales):
                    given = _halved(given, self.dims)
                    x = x + self.scales[level - 1](given)
            x = block(x)
            if len(self.attend):
                x = self.attend[level](x)
            skipped.append(x)
        x = skipped.pop()
        if keep is not None:
            x = x * keep[(..., *(None,) * self.dims)]
        logits = [] if len(self.up) else [self.heads[0](x)]
        for level in reversed(range(len(self.up))):
            x = self.decode[level](self.up[level](x) + skipped[level])
            if level < len(self.heads):
                logits.append(self.heads[level](x))
        return [to_voxels(logits[-1], self.cell), *logits[-2::-1]]


class Volumetric(nn.Module):
    """3D: ``x`` (N, C, D, H, W) to logits (N, 1, D, H, W), and coarser ones."""

    def __init__(self, net: ResidualUNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> list[torch.Tensor]:
        outputs: list[torch.Tensor] = self.net(x, keep)
        return outputs


class Slicewise(nn.Module):
    """2.5D: every slice is judged from a stack of itself and its neighbours; the volume's end slices are repeated."""

    def __init__(self, net: ResidualUNet, channels: int, slices: int, attention: bool) -> None:
        super().__init__()
        self.net, self.slices = net, slices
        self.attend = SliceAttention(channels * slices) if attention else nn.Identity()

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> list[torch.Tensor]:
        """As in 3D; coarser logits have all slices, at half and a quarter of the resolution in the plane."""
        n, channels, depth, height, width = x.shape
        reach = self.slices // 2
        padded = functional.pad(x, (0, 0, 0, 0, reach, reach), mode="replicate") if reach else x
        stacks = padded.unfold(2, self.slices, 1).permute(0, 2, 1, 5, 3, 4)
        stacks = self.attend(stacks.reshape(n * depth, channels * self.slices, height, width))
        if keep is not None:
            keep = keep.repeat_interleave(depth, 0)
        flat: list[torch.Tensor] = self.net(stacks, keep)
        return [one.reshape(n, 1, depth, *one.shape[2:]) for one in flat]


Network = Volumetric | Slicewise


def build_network(spec: StudentSpec, seed: int) -> Network:
    """The network that a spec describes, with weights drawn from the seed; on the CPU, in evaluation form."""
    settings = spec.settings
    flat, channels = spec.variant == "2.5d", channel_count(settings.sides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = channels * settings.context_slices if flat else channels
        net = ResidualUNet(
            2 if flat else 3, inputs, settings.base_channels, settings.levels,
            convolutions=settings.block_convolutions, cell=settings.cell, multi_scale=settings.multi_scale,
            attention=settings.attention, deep_supervision=settings.deep_supervision,
        )  # fmt: skip
        return Slicewise(net, channels, settings.context_slices, settings.attention) if flat else Volumetric(net)


def to_cells(x: torch.Tensor, cell: int) -> torch.Tensor:
    """(N, C, ...) to (N, C cell^d, ... / cell): the voxels of a cell become channels."""
    if cell == 1:
        return x
    dims = x.dim() - 2
    n, channels, *edges = x.shape
    split = x.reshape(n, channels, *(size for edge in edges for size in (edge // cell, cell)))
    order = [0, 1, *(3 + 2 * axis for axis in range(dims)), *(2 + 2 * axis for axis in range(dims))]
    return split.permute(order).reshape(n, channels * cell**dims, *(edge // cell for edge in edges))


def to_voxels(x: torch.Tensor, cell: int) -> torch.Tensor:
    """(N, cell^d, ...) to (N, 1, ... cell): the reverse, for one channel."""
    if cell == 1:
        return x
    dims = x.dim() - 2
    n, _, *edges = x.shape
    split = x.reshape(n, *(cell,) * dims, *edges)
    order = [0, *(at for axis in range(dims) for at in (1 + dims + axis, 1 + axis))]
    return split.permute(order).reshape(n, 1, *(edge * cell for edge in edges))


def _down(dims: int, given: int, made: int) -> nn.Module:
    return nn.Sequential(convolution(dims, given, made, 2, stride=2))


def _attention(dims: int, channels: int) -> nn.Module:
    both: list[nn.Module] = [SpatialAttention(dims)]
    return nn.Sequential(*both, DepthAttention(channels)) if dims == 3 else both[0]


def _halved(x: torch.Tensor, dims: int) -> torch.Tensor:
    return functional.avg_pool3d(x, 2) if dims == 3 else functional.avg_pool2d(x, 2)
