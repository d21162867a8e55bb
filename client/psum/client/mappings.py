"""For front ends: changes what memory lies at an address, while all who have the address keep it."""

from psum.runtime.mappings import address_of, make_private, map_again

__all__ = ["address_of", "make_private", "map_again"]
