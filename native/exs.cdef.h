/* What Python sees of api.h.  tests/unit/test_cdef.py compares the two. */
