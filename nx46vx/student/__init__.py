"""The student: a compact residual U-Net over the raw volume, trained on patches; needs torch, the rest does not."""
