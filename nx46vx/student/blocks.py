"""Building blocks of the network in two or three dimensions: residual convolutions, attention over places and depth."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional

_CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def convolution(dims: int, given: int, made: int, edge: int, *, stride: int = 1, bias: bool = True) -> nn.Module:
    """A convolution that keeps the shape at stride 1."""
    return _CONV[dims](given, made, edge, stride=stride, padding=(edge - 1) // 2, bias=bias)


def upsampling(dims: int, given: int, made: int) -> nn.Module:
    """Twice the resolution, learned."""
    return _TRANSPOSED[dims](given, made, 2, stride=2)


class ResidualBlock(nn.Module):
    """Some convolutions beside a shortcut (He et al. 2016). Normalised by sample and channel, so a sample's result
    depends on no other sample of its batch."""

    def __init__(self, dims: int, given: int, made: int, convolutions: int) -> None:
        super().__init__()
        widths = [given, *[made] * convolutions]
        self.convolutions = nn.ModuleList(
            [convolution(dims, one, other, 3, bias=False) for one, other in itertools.pairwise(widths)]
        )
        self.norms = nn.ModuleList([_NORM[dims](made, affine=True) for _ in range(convolutions)])
        self.shortcut = nn.Identity() if given == made else convolution(dims, given, made, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = x
        for number, (convolve, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            inner = norm(convolve(functional.leaky_relu(inner, 0.01) if number else inner))
        return functional.leaky_relu(inner + self.shortcut(x), 0.01)


class SpatialAttention(nn.Module):
    """Weighs places: a gate in 0..2 from the mean and the largest channel around each voxel (Woo et al. 2018)."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.look = convolution(dims, 2, 1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * (2 * torch.sigmoid(self.look(seen)))


class DepthAttention(nn.Module):
    """Weighs slices: a gate in 0..2 for each channel and slice, from the slices' means and their neighbours along z."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 4, 2)
        self.along = nn.Sequential(
            nn.Conv1d(channels, hidden, 3, padding=1), nn.ReLU(), nn.Conv1d(hidden, channels, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (N, C, D, H, W)."""
        gate = 2 * torch.sigmoid(self.along(x.mean((3, 4))))
        return x * gate[..., None, None]


class SliceAttention(nn.Module):
    """The same for a stack of slices in the channels' place: a gate for each from the means and contrasts of all."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(2 * slices, 2 * slices), nn.ReLU(), nn.Linear(2 * slices, slices))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (N, S, H, W)."""
        seen = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)
        return x * (2 * torch.sigmoid(self.weigh(seen)))[..., None, None]
