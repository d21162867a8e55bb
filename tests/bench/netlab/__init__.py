"""The network lab: runs psum and its rivals on hosts with their own links, all on one machine; see `scripts/netlab`."""
