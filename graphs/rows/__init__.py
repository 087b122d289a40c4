"""Row rules: which axis of every tensor is the batch axis, op by op."""
