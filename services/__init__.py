"""The three services. None of them imports another: they meet through the contracts in `protos/` only."""
