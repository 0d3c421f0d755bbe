// Numbers that were chosen by measurement, and the measurements.
#pragma once

#include <cstdint>

namespace fusedopt {

// Elements of the tile in which the CPU converts, gathers or rescales: five of them stay in the L1
// cache.
inline constexpr int kTile = 128;

// Elements of the tiles in which operands of unlike layouts are gathered: tiles along rows, and,
// where an operand is transposed, blocks of kBlockRows rows. Rows of kShortRow elements or more are
// stepped one by one, so that what lies side by side within a row stays in place.
inline constexpr int kRowTile = 512;
inline constexpr int kBlockTile = 1024;
inline constexpr int kBlockRows = 16;
inline constexpr int64_t kShortRow = 32;

// A last dimension of fewer elements makes no block with another: blocks have three dimensions
// then.
inline constexpr int64_t kShortColumns = 8;

// Memory is asked for this many tiles before a step needs it.
inline constexpr int kTilesAhead = 4;

// Groups of 16-bit floats (cpu/half.inl: of 16, with AVX-512 of 32) in a block. Each cache line of
// memory is asked for so many bytes before a step needs it. Two states, two divisions and a root,
// on an EPYC Milan with AVX2 and g++ 12, ns per element in cache: blocks of 16, 0.57 for float16
// and 0.84 for bfloat16 (float32 takes 0.46); bfloat16 in blocks of 16 widened and narrowed eight
// at a time, 1.04; with a branch instead of a blend for NaNs, 1.05; blocks of 32, 0.66 and 1.05;
// tiles of 128 one after the other, 1.10 and 1.34, of 512, 0.98 and 1.23; blocks of 16 whose
// bfloat16 g++ converts, 4.2. Without a state g++ unrolls a loop over 16 before it could vectorise
// it: 0.71 for float16 and 0.92 for bfloat16, and with 32, 0.09 and 0.17.
//
// With one division, bfloat16, 2026-11-25: 0.76; rules that compare no floats in the loop, 0.71;
// rounded in lanes of 16 bits, where two vectors become one, 0.65; two blocks per turn of the loop,
// 0.62. One state with a division and a root: 0.56, 0.54, 0.50, 0.49, and in blocks of 32, 0.51.
// Tried and slower: NaNs by a branch, 0.95 where a blend takes 0.76; stores of one block after the
// arithmetic of the next, 0.70 where at once they take 0.62. The limit are the registers that
// hold results until their block's division is done: some 50 per block, of the core's 160.
//
// With AVX-512, 2026-11-26, a Xeon of 2 cores, 16,384 elements, no state, one, one with a division
// and a root, two with both, ns per element: blocks of 32, bfloat16 0.22, 0.31, 0.51 and 0.56,
// float16 0.21, 0.28, 0.50 and 0.51. Before, in tiles, 0.37, 0.52, 0.71 and 0.83, and 0.33, 0.43,
// 0.71 and 0.79. The kernels for AVX2 there: 0.25, 0.38, 0.48 and 0.62, and 0.21, 0.28, 0.46 and
// 0.48, and as much with AVX-512's instructions on short vectors: both sizes take as long per
// division. Rejected: long vectors converted and short ones computed with, 0.43, 0.72, 0.76 and
// 0.71 (what is stored in one size is read in another).
//
// AVX-512, 2026-11-26, an EPYC (Zen 4) of 2 cores, one tensor of 16 Mi without state, bfloat16, ms:
// every second line asked for, 4096 bytes ahead, 2.7; each, 1024 ahead, 1.9; 2048, 1.65; 4096, 1.9.
//
// vcvtneps2bf16 (avx512_bf16), 2026-11-28, the same EPYC, 65,536 elements in cache: of all 2^32
// floats it rounds the normal ones as these kernels do, makes zeros of subnormal ones and keeps
// NaNs' payloads. In the place of the rounding here, with those other bits, 0.85 (no state) to 0.95
// of the time, 0.88 for two states; where a block with such a number, found by vfpclassps, is
// rounded as here, 1.00 to 1.03. Not done.
//
// Rounded by noise, 2026-11-27, the same EPYC, 65,536 elements in cache, two states with a division
// and a root, ns per element with AVX2 and with AVX-512: 0.74 and 0.57, as halves of float32 0.80
// and 0.61; to nearest 0.58 and 0.49.
//
// Two blocks per turn, 2026-11-28, the same EPYC, one per turn takes so much more: with AVX2 0 to 5
// %, with formats of their own 0 to 6 % on both; with AVX-512 else, and for three states, up to 3 %
// less.
template <int kStates>
inline constexpr int kBlockGroups = kStates == 0 ? 2 : 1;
inline constexpr int kBlockBytesAhead = 2048;

// Nothing is asked for in advance where 32-bit and 64-bit tensors are stepped in place: the
// hardware follows these streams. One float32 tensor of 25.6 M on two threads of an EPYC Milan, in
// percent of the floor, two states and one: 103 and 95; asking for 1 KiB ahead, 92 and 92;
// for 4 KiB ahead, 85 and 88.

// Fewer elements than this run on the calling thread. 1000 tensors of 64, two states, on two
// threads of an EPYC Milan whose neighbours are busy: 0.41 ms on the calling thread, 0.70 ms (and
// up to 2.8) shared.
inline constexpr int64_t kParallelElements = 131072;

// From this many elements on, the interpreter lock is released during the sweep. Holding the
// tensors' storages meanwhile costs some 10 ns for each.
inline constexpr int64_t kReleaseElements = 1 << 20;

// Threads take this many elements at a time, so that one that is slowed down does less.
inline constexpr int64_t kChunkElements = 131072;
inline constexpr int64_t kSmallestChunk = 16384;
inline constexpr int64_t kMaxChunks = 1024;

// Up to this many elements each thread begins with a part of its own. On an EPYC with 1 MB of L2
// cache per core and 32 MB of L3, two threads, us with a part of its own and with the next chunk
// that is free: 256 Ki elements without state 17 and 18 to 30, 1 Mi 51 to 57 and 53 to 88; 4 Mi
// with two states 1454 to 1662 and 1345 to 1414.
inline constexpr int64_t kCachedElements = 1 << 21;

// Objects, counters and first elements of a parameter are asked for this many parameters before a
// step needs them. 1000 tensors of 64, two states, on an EPYC Milan, ns per parameter with these
// and without: 190 and 198 where all is in the L3 cache, 365 and 519 where nothing is; 10,000 of
// 16: 408 and 566. Other distances, from 1 to 12, are within 5 %.
//
// Such a step waits for instructions, too: 30 such tensors, all in the L2 cache, take
// 97 to 205 ns each, and 1000 take 145 to 217. A dict whose version says that nothing has changed
// isn't read again: 1,437 instructions per parameter instead of 1,837, and 225 ns instead of 290
// (medians of three times 600 rounds). Tensors that are as they were aren't checked anew
// (torch/unchanged.cpp): 1,190 instructions, and 190 ns instead of 208 (2026-11-25, medians of four
// processes by turns); it is 1,246 since state put back and lazily copied memory are seen as well,
// and 1,264 since gradients in memory that the step writes are. Formats of their own and noise have
// made it 1,303 (2026-11-27); a group's kernel and how its numbers are stored are compared at once,
// which saves 17, and its states' places are looked up once per group, not per parameter.
//
// Tried and no faster: versions counted before the table's entry is written, and that in its place
// instead of copied there, 233 and 231 ns. Checking and counting shared by two threads, 0.27 to
// 0.47 ms for 1000 of 64 instead of 0.23 to 0.40. For 10,000 of 16 that won, 2.9 to 3.2 ms instead
// of 4.1 to 4.2, but a thread that the interpreter doesn't know would read its objects: not done.
//
// Counting versions and filling the table without reading a tensor or a storage again: 68 cache
// lines per parameter instead of 79, 60 instructions fewer there and 69 more in checking, and no
// gain in time: 0.93 to 1.05 times as fast, median 0.98, over six optimizers on 1000 of 64 and one
// on 10,000 of 16 (two builds by turns, 60 and 40 rounds, an EPYC Milan with busy neighbours).
// Presumably the lines that were saved had been asked for in advance. With versions counted by a
// load and a store, not atomically, 1.02 to 1.12 times as fast as that, median 1.05. It would lose
// what another thread counts meanwhile, and needs the layout of torch's private counter: not done.
inline constexpr int kCheckAhead = 2;
inline constexpr int kFillAhead = 4;
inline constexpr int kSweepAhead = 1;
inline constexpr int64_t kPrefetchBytes = 512;

// New state of parameters of at most this many bytes is made where the heap has no holes. 1000
// tensors of 64, two states, on an EPYC Milan: 147 ns per parameter and step instead of 190. Where
// state lies in holes, a step touches 2,800 pages, more than the processor knows the addresses of
// (2,048). Elements side by side in one block of memory besides gain nothing more.
inline constexpr int64_t kSmallStateBytes = 4096;

// Of the CUDA sweep. None of these is measured yet: no GPU was at hand. They are reckoned from what
// an H100 needs in flight to reach its bandwidth, some 64 KB per multiprocessor, and from ptxas'
// reports of nvcc 13.0.

// Threads of a block.
inline constexpr int kBlockThreads = 256;

// What a thread moves at once: the widest access that a GPU has.
inline constexpr int kVectorBytes = 16;

// Vectors of each operand that a thread loads before it uses the first: some 128 bytes.
template <int kOperands>
inline constexpr int kVectorBatch = kOperands >= 5 ? 1 : 8 / kOperands;

// Blocks that one multiprocessor must be able to hold, which limits their registers: to 64, with up
// to 128 KB in flight; for float64, whose division and root need more, to 128, with 64 KB. For
// sm_120 ptxas spills some registers with 64 and with 80, so all may have 128 there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
inline constexpr int kBlocksHeld = 2;
#else
inline constexpr int kBlocksHeld = 4;
#endif
template <int kItemBytes>
inline constexpr int kResidentBlocks = kItemBytes == 8 ? 2 : kBlocksHeld;

// A row is one vector for each thread of a block. A block steps up to this many bytes of each
// operand, which makes up for finding its tensor; and fewer, down to one row, where there would be
// fewer blocks per multiprocessor than wanted: they end at different times, and more of them leave
// less of the chip idle at the end.
inline constexpr int64_t kRowBytes = kBlockThreads * kVectorBytes;
inline constexpr int64_t kMaxChunkBytes = 4 * kRowBytes;
inline constexpr int64_t kBlocksWanted = 64;

}  // namespace fusedopt
