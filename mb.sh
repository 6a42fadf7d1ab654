# usage: b.sh FLAG(none|DOT|INDIVIDUAL_DOT|...) case n
export JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=/work/w/cache JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=0
export GLIBC_TUNABLES=${TUN:-glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=67108864}
export XLA_FLAGS="$EXTRA"
[ "$1" != none ] && XLA_FLAGS="$EXTRA --xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_$1"
cd ${DIR:-/work/main}; /work/clone/.venv-parity/bin/python /work/w/mb.py
