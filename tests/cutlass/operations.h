// CuTe's names of the products that our kernels use, by the types of the operands.
#pragma once

#include <cstdint>

#include <cute/arch/mma_sm80.hpp>
#include <cute/arch/mma_sm90.hpp>

template <typename A, typename B>
struct Operation16x8x32;
template <>
struct Operation16x8x32<int8_t, int8_t> { using type = cute::SM80_16x8x32_S32S8S8S32_TN; };
template <>
struct Operation16x8x32<int8_t, uint8_t> { using type = cute::SM80_16x8x32_S32S8U8S32_TN; };
template <>
struct Operation16x8x32<uint8_t, int8_t> { using type = cute::SM80_16x8x32_S32U8S8S32_TN; };
template <>
struct Operation16x8x32<uint8_t, uint8_t> { using type = cute::SM80_16x8x32_S32U8U8S32_TN; };

template <typename A, typename B>
struct Operation8x8x16;
template <>
struct Operation8x8x16<int8_t, int8_t> { using type = cute::SM80_8x8x16_S32S8S8S32_TN; };
template <>
struct Operation8x8x16<int8_t, uint8_t> { using type = cute::SM80_8x8x16_S32S8U8S32_TN; };
template <>
struct Operation8x8x16<uint8_t, int8_t> { using type = cute::SM80_8x8x16_S32U8S8S32_TN; };
template <>
struct Operation8x8x16<uint8_t, uint8_t> { using type = cute::SM80_8x8x16_S32U8U8S32_TN; };

// Products of a warpgroup, 64 x columns: both operands in shared memory, or the left one in
// registers.
template <typename A, typename B, int columns>
using SharedOperation = decltype(
    cute::SM90::GMMA::ss_op_selector<A, B, int32_t,
                                     cute::Shape<cute::_64, cute::Int<columns>, cute::_32>>());
template <typename A, typename B, int columns>
using RegisterOperation = decltype(
    cute::SM90::GMMA::rs_op_selector<A, B, int32_t,
                                     cute::Shape<cute::_64, cute::Int<columns>, cute::_32>>());
