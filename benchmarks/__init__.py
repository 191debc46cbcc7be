"""thalweg against its peers, in the same process and the same precision: `make bench-vector`, not part of the tests."""
