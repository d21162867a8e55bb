"""Hosts with links of their own on one machine, and psum and its rivals on them; `scripts/netlab` runs it."""
