//! Which tensors of which architecture write the residual stream.
