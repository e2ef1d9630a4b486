//! Residual-stream means over prompt sets, by position and block.
