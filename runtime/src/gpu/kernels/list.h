// Every kernel, once: KERNEL(name) is whatever the includer makes of it.
KERNEL(add_rows)
KERNEL(sum_rows)
KERNEL(add_bias)
KERNEL(silu_mul)
KERNEL(combine)
KERNEL(rms_norm)
KERNEL(rotate)
