"""The protocol's generated modules: made by scripts/proto from aggregator.proto, never edited by hand."""
