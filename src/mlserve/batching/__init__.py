"""Dynamic batching: a pure queue, policy and cost model, and the batcher that drives them."""
