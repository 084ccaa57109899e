# SPDX-License-Identifier: MIT OR Apache-2.0
"""SMC-R: streams that an AF_SMC program at the other end understands.

The bytes are described in docs/wire/smc-r.md.
"""
