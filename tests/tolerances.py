"""Every error bound of the tests, with its derivation."""

#: One float32 rounding of a sum and one multiplication by a rounded scale, and the scale itself
#: (product of two rounded steps): at most 4 roundings of 2**-24 relative each, doubled.
FLOAT32_ROUNDINGS = 8 * 2.0**-24

#: Rounding to bfloat16 (8 bits of mantissa) and to float16 (11 bits), relative, half an ulp.
BFLOAT16_ROUNDING = 2.0**-8
FLOAT16_ROUNDING = 2.0**-11


def quantization_noise(levels: int) -> float:
    """Largest error of a value on a grid of so many steps, relative to the threshold."""
    return 0.5 / levels


#: Relative error of a value whose rounding to 8 bits flips at a few ties. Fused and unfused blocks
#: compute statistics in float64 and float32, which moves values by E = 2e-6 of their size at most.
#: A share of 2 * 255 * E = 1e-3 of values lies that near to a tie and moves by one step, threshold
#: / 127; with a threshold of up to 10 root mean squares the tensor moves by
#: 10 / 127 * sqrt(1e-3) = 2.5e-3 of its norm.
FLIPPED_TIES = 2.5e-3

#: 8-bit codes of a norm's input for its backward pass: uniform error of step / sqrt(12), step =
#: range / 255, a range of up to 14 standard deviations: 0.016 of one. Where gz has no preferred
#: sign, sum(gz xhat), the gradient of the norm's weight, has the relative error of xhat; in dy the
#: codes enter by xhat * mean(gz xhat) alone, which is smaller.
CODED_OUTPUT = 1.6e-2


def fused_bound(dtype, units: int, *, coded: bool) -> float:
    """Relative difference (of norms) of gradients of a fused and an unfused block.

    Each unit between a parameter and the output adds its flips to the gradient twice (x and g),
    its codes once, and in a narrow dtype three roundings (norm, addition, gradient).
    """
    import torch

    rounding = {
        torch.float32: 0.0,
        torch.bfloat16: 3 * BFLOAT16_ROUNDING,
        torch.float16: 3 * FLOAT16_ROUNDING,
    }[dtype]
    return units * (2 * FLIPPED_TIES + rounding + (CODED_OUTPUT if coded else 0.0))


#: Sums of the fused glue, relative to the sum of magnitudes: a product and chains of 8 values and
#: of 4 such sums in float32 (1 + 7 + 3 roundings of 2**-24), and one more for what float64 adds.
FLOAT32_CHUNK_SUM = 12 * 2.0**-24

#: The same where tiles of a product take them: a product, chains of 16 values of a lane and of 8
#: such sums in float32 (1 + 15 + 7 roundings of 2**-24), and one more for what float64 adds.
FLOAT32_TILE_SUM = 24 * 2.0**-24


def product_sum(backend: str) -> float:
    """Bound of the sums that a product's kernel takes of its results on a backend of conftest."""
    return FLOAT32_TILE_SUM if backend in ("cuda", "emulated") else FLOAT32_CHUNK_SUM
