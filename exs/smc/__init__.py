# SPDX-License-Identifier: MIT OR Apache-2.0
"""SMC-R (RFC 7609, and version 2): streams that an unmodified program on Linux's AF_SMC understands."""
