//! What can go wrong in the graph.
#![forbid(unsafe_code)]

/// What went wrong inside the graph.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HookError {
    /// No node reads `token_embd.weight`.
    #[error("the residual stream has no beginning: no graph node reads token_embd.weight")]
    NoEmbedding,
    /// A block whose output never came by.
    #[error("block {block}: its output (a node named l_out-{block}) is not in this model's graph")]
    BlockNotSeen {
        /// 0-based block.
        block: usize,
    },
    /// A block output that is not the sum of the embedding and the blocks' writes.
    #[error(
        "block {block}: {node} is not reached from the token embedding by additions alone, so a write would be missed"
    )]
    NotTheStream {
        /// 0-based block.
        block: usize,
        /// The node's name.
        node: String,
    },
    /// A node with a number of rows that fits neither the batch nor its outputs.
    #[error("node {node}: expected {tokens} rows (the batch) or {outputs} (its outputs), found {found}")]
    Rows {
        /// The node's name.
        node: String,
        /// Tokens in the batch.
        tokens: usize,
        /// Tokens whose logits were asked for.
        outputs: usize,
        /// Rows of the node.
        found: i64,
    },
    /// A node whose memory is not plain rows of f32.
    #[error("node {node}: expected contiguous f32 rows, found {found}")]
    Layout {
        /// The node's name.
        node: String,
        /// Type and strides.
        found: String,
    },
    /// A direction of another width than the stream.
    #[error("node {node}: the direction has {direction} elements, the residual stream {stream}")]
    Width {
        /// The node's name.
        node: String,
        /// Elements of the direction.
        direction: usize,
        /// `n_embd`.
        stream: usize,
    },
    /// The stream is not a number, or so large that f32 cannot erase a direction from it.
    #[error("block {block}, token {token}: after ablation |r·x| is {component:e} of |x| {norm:e}")]
    NotAblated {
        /// 0-based block.
        block: usize,
        /// Index of the token in the batch.
        token: usize,
        /// |r·x|.
        component: f64,
        /// ‖x‖.
        norm: f64,
    },
    /// Expert numbers that are not what a MUL_MAT_ID has.
    #[error("node {node}: expert {found} of {experts} for token {token}")]
    Expert {
        /// The node's name.
        node: String,
        /// Index of the token in the batch.
        token: usize,
        /// The number found.
        found: i32,
        /// Slices of the matrix.
        experts: usize,
    },
    /// A matrix whose input was to be captured, and that no matrix product of the graph reads.
    #[error("the input of {name} was to be captured, but no matrix product of this model's graph reads it")]
    WriterNotSeen {
        /// The tensor's name.
        name: String,
    },
    /// An addition or a probe at a block that the model does not have.
    #[error("{what} at block {block}: the model has blocks 0 to {last}")]
    NoSuchBlock {
        /// What was to be there.
        what: &'static str,
        /// The block asked for.
        block: usize,
        /// The model's last block.
        last: usize,
    },
    /// A panic in the callback or in the caller's sink.
    #[error("panic in the eval callback: {0}")]
    Panic(String),
}
