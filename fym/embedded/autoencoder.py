"""The embedded model's autoencoder: AutoencoderKLWan's interface, sized to train in minutes on two cores.

Pixels (B, 3, F, H, W) in [-1, 1] with F = 4k+1 become latents (B, 16, k+1, H/8, W/8). As in Wan's VAE the
first frame is coded alone, with statistics of its own, and every later latent frame holds four pixel frames;
unlike there a latent frame sees only its own pixel frames.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange, repeat
from torch import Tensor, nn

import fym_kernels

PATCH, STRIDE = 8, 4  # pixels in space, frames in time
LOG_VARIANCE = -6.0  # of the posterior, constant


class ConvBlock(nn.Module):
    """Residual block: 3x3 depthwise convolution, layer norm, two-layer perceptron (ConvNeXt)."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width, padding_mode="replicate")
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x_NHWC: Tensor) -> Tensor:
        mixed = self.mix(x_NHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x_NHWC + self.down(fym_kernels.gelu(self.up(self.norm(mixed))))


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """A linear patch code (principal components at the start of training) plus convolutional corrections."""

    @register_to_config
    def __init__(
        self,
        z_dim: int = 16,
        width: int = 192,
        encoder_blocks: int = 2,
        decoder_blocks: int = 5,
        latents_mean: list[float] = [0.0] * 16,
        latents_std: list[float] = [1.0] * 16,
        first_frame_mark: list[float] = [0.0] * 16,
        scale_factor_temporal: int = STRIDE,
        scale_factor_spatial: int = PATCH,
    ):
        super().__init__()
        values = 3 * STRIDE * PATCH * PATCH
        self.encode_linear = nn.Linear(values, z_dim)
        self.encode_in = nn.Linear(values, width)
        self.encode_blocks = nn.Sequential(*(ConvBlock(width) for _ in range(encoder_blocks)))
        self.encode_out = nn.Linear(width, z_dim)
        self.decode_linear = nn.Linear(z_dim, values)
        self.decode_in = nn.Linear(z_dim, width)
        self.decode_blocks = nn.Sequential(*(ConvBlock(width) for _ in range(decoder_blocks)))
        self.decode_out = nn.Linear(width, values)
        for layer in (self.encode_out, self.decode_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def encode_groups(self, patches_NHWC: Tensor) -> Tensor:
        """(N, H/8, W/8, 768) patches of one latent frame each -> (N, H/8, W/8, 16)."""
        return self.encode_linear(patches_NHWC) + self.encode_out(
            self.encode_blocks(self.encode_in(patches_NHWC))
        )

    def decode_groups(self, z_NHWC: Tensor) -> Tensor:
        """The inverse of `encode_groups`."""
        return self.decode_linear(z_NHWC) + self.decode_out(self.decode_blocks(self.decode_in(z_NHWC)))

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Pixels (B, 3, 4k+1, H, W) in [-1, 1] -> posterior over latents (B, 16, k+1, H/8, W/8)."""
        frames, height, width = x.shape[2:]
        if (frames - 1) % STRIDE or height % PATCH or width % PATCH:
            raise ValueError(f"frames must be 4k+1 and sizes multiples of {PATCH}, got {tuple(x.shape)}")
        x = torch.cat([repeat(x[:, :, :1], "b c 1 h w -> b c t h w", t=STRIDE), x[:, :, 1:]], 2)
        patches = to_patches(x)
        z = rearrange(self.encode_groups(patches.flatten(0, 1)), "(b t) h w c -> b c t h w", b=len(x))
        z = z + self._mark(z)
        posterior = DiagonalGaussianDistribution(torch.cat([z, torch.full_like(z, LOG_VARIANCE)], 1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, 16, k+1, h, w) -> pixels (B, 3, 4k+1, 8h, 8w) in [-1, 1]."""
        groups = self.decode_groups(rearrange(z - self._mark(z), "b c t h w -> (b t) h w c"))
        x = from_patches(groups.unflatten(0, (len(z), -1)))[:, :, STRIDE - 1 :].clamp(-1, 1)
        return DecoderOutput(sample=x) if return_dict else (x,)

    def _mark(self, z: Tensor) -> Tensor:
        """(1, 16, F', 1, 1): what is added to the first latent frame.

        Rotary embedding is relative: from its input alone a transformer sees where a clip begins only if the
        first frame looks different, as it does with Wan's VAE.
        """
        mark = z.new_zeros(1, z.shape[1], z.shape[2], 1, 1)
        mark[0, :, 0, 0, 0] = torch.tensor(self.config.first_frame_mark, dtype=z.dtype)
        return mark


def to_patches(x: Tensor) -> Tensor:
    """(B, 3, 4n, H, W) -> (B, n, H/8, W/8, 768)."""
    return rearrange(x, "b c (t s) (h p) (w q) -> b t h w (c s p q)", s=STRIDE, p=PATCH, q=PATCH)


def from_patches(patches: Tensor) -> Tensor:
    """The inverse of `to_patches`."""
    return rearrange(patches, "b t h w (c s p q) -> b c (t s) (h p) (w q)", s=STRIDE, p=PATCH, q=PATCH)
