// Where the lookup tables stand that `gpu/tables.rs` builds from the CPU kernels' constants. A test over there
// compares the two lists.
#pragma once

#define TABLE_NONLINEAR 0
#define TABLE_E2M1 16
#define TABLE_IQ3_XXS 32
#define TABLE_IQ3_S 1056
#define TABLE_IQ2_XXS 3104
#define TABLE_IQ2_XS 5152
#define TABLE_IQ2_S 9248
#define TABLE_IQ1 17440
