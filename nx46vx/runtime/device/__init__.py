"""Which device computes, why that one, and which GPUs there are that really run a kernel."""

from nx46vx.runtime.device.choice import choose_device
from nx46vx.runtime.device.found import CPU, DeviceChoice, Gpu, Probe

__all__ = ["CPU", "DeviceChoice", "Gpu", "Probe", "choose_device"]
