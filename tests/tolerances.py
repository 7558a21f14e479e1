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


#: Sums of the fused glue, relative to the sum of magnitudes: a product and a chain of 8 additions
#: in float32 (9 roundings of 2**-24), and one more for what float64 adds to it.
FLOAT32_CHUNK_SUM = 10 * 2.0**-24
