//! The ops that ggml and the IR share, one row each. Lifting reads a row from left to right, emission from right to left, so
//! that a lifted op comes out with the parameters that it had.
//!
//! Ops that lifting makes from shapes alone (reshapes, views, copies) and ops that bidpo's kernels compute are not here.

use super::ir::{Glu, MatrixScan, Op, OpParams, Unary};
use crate::llama::sys;

/// A parameter as ggml stores it.
trait Param {
    fn read(stored: i32) -> Self;
    fn write(self) -> i32;
}

impl Param for f32 {
    fn read(stored: i32) -> Self {
        Self::from_bits(stored as u32)
    }

    fn write(self) -> i32 {
        self.to_bits() as i32
    }
}

impl Param for usize {
    fn read(stored: i32) -> Self {
        stored as Self
    }

    fn write(self) -> i32 {
        self as i32
    }
}

/// Rows of ggml's code, the IR's variant, and the index of each field among ggml's parameters. `without`: variants that have no
/// row here. A variant that is in neither does not compile: the match below is exhaustive.
macro_rules! table {
    ($kind:ident, $read:ident, $write:ident, without [$($without:pat),*], $($code:ident = $variant:ident $({ $($field:ident: $at:literal),* })?;)*) => {
        fn $read(code: u32, params: &OpParams) -> Option<$kind> {
            let _ = params; // a table may have no fields
            match code {
                $(sys::$code => Some($kind::$variant $({ $($field: Param::read(params[$at])),* })?),)*
                _ => None,
            }
        }

        fn $write(op: $kind, params: &mut OpParams) -> Option<u32> {
            let _ = &params;
            match op {
                $($kind::$variant $({ $($field),* })? => {
                    $($(params[$at] = $field.write();)*)?
                    Some(sys::$code)
                })*
                $($without => None,)*
            }
        }
    };
}

table! { Op, read_op, write_op,
    without [
        // Leaves, and what lifting makes from shapes alone.
        Op::Input(_), Op::Weight(_), Op::Cont, Op::Cast, Op::Reshape, Op::View { .. }, Op::Permute(_),
        // `lift` and `emit` below: parameters that are passed through or arranged.
        Op::MulMat(_), Op::MulMatId(_), Op::Rope(_), Op::RopeBack(_), Op::Other { .. }, Op::Unary(_), Op::Glu(_), Op::Pad(_),
        Op::Acc { .. }, Op::SsmScan, Op::MixStreams { .. }, Op::SoftMaxBack { .. }, Op::GetRowsBack, Op::RepeatBack,
        // bidpo's kernels.
        Op::MulMatT, Op::MulMatIdT, Op::OuterSum, Op::RmsNormBack { .. }, Op::Attention { .. }, Op::AttentionBackQ { .. },
        Op::AttentionBackKv { .. }, Op::SiluBack, Op::GeluBack, Op::ScatterRows, Op::LossHead, Op::LogProbHead,
        Op::SsmConvBack, Op::SsmScanBack, Op::MatrixScan(_), Op::MatrixScanBack(_)
    ],
    GGML_OP_ADD = Add;
    GGML_OP_SUB = Sub;
    GGML_OP_MUL = Mul;
    GGML_OP_DIV = Div;
    GGML_OP_ADD_ID = AddId;
    GGML_OP_SCALE = Scale { s: 0, b: 1 };
    GGML_OP_CLAMP = Clamp { min: 0, max: 1 };
    GGML_OP_SQR = Sqr;
    GGML_OP_SQRT = Sqrt;
    GGML_OP_SUM_ROWS = SumRows;
    GGML_OP_MEAN = Mean;
    GGML_OP_REPEAT = Repeat;
    GGML_OP_NORM = Norm { eps: 0 };
    GGML_OP_RMS_NORM = RmsNorm { eps: 0 };
    GGML_OP_L2_NORM = L2Norm { eps: 0 };
    GGML_OP_SOFT_MAX = SoftMax { scale: 0, max_bias: 1 };
    GGML_OP_CONCAT = Concat { dim: 0 };
    GGML_OP_GET_ROWS = GetRows;
    GGML_OP_SET_ROWS = SetRows;
    GGML_OP_SSM_CONV = SsmConv;
}

// Parameter 0 is the function's code.
table! { Unary, read_unary, write_unary, without [],
    GGML_UNARY_OP_TANH = Tanh;
    GGML_UNARY_OP_SILU = Silu;
    GGML_UNARY_OP_GELU = Gelu;
    GGML_UNARY_OP_GELU_ERF = GeluErf;
    GGML_UNARY_OP_GELU_QUICK = GeluQuick;
    GGML_UNARY_OP_RELU = Relu;
    GGML_UNARY_OP_SIGMOID = Sigmoid;
    GGML_UNARY_OP_EXP = Exp;
    GGML_UNARY_OP_SOFTPLUS = Softplus;
    GGML_UNARY_OP_NEG = Neg;
    GGML_UNARY_OP_ABS = Abs;
    GGML_UNARY_OP_SGN = Sgn;
    GGML_UNARY_OP_STEP = Step;
    GGML_UNARY_OP_XIELU = Xielu { n: 1, p: 2, beta: 3, eps: 4 };
}

// Parameter 0 is the function's code; parameter 1 says whether the gate comes second, which lifting resolves.
table! { Glu, read_glu, write_glu, without [],
    GGML_GLU_OP_REGLU = Reglu;
    GGML_GLU_OP_SWIGLU = Swiglu;
    GGML_GLU_OP_GEGLU = Geglu;
    GGML_GLU_OP_GEGLU_ERF = GegluErf;
    GGML_GLU_OP_GEGLU_QUICK = GegluQuick;
    GGML_GLU_OP_SWIGLU_OAI = SwigluOai { alpha: 2, limit: 3 };
    GGML_GLU_OP_SWIGLU_CLAMP = SwigluClamp { limit: 3 };
}

/// The IR's op for one of ggml's; None for one that the IR does not know.
pub(super) fn lift(code: sys::ggml_op, params: &OpParams) -> Option<Op> {
    match code {
        sys::GGML_OP_MUL_MAT => Some(Op::MulMat(*params)),
        sys::GGML_OP_MUL_MAT_ID => Some(Op::MulMatId(*params)),
        sys::GGML_OP_ROPE => Some(Op::Rope(*params)),
        sys::GGML_OP_UNARY => read_unary(params[0] as u32, params).map(Op::Unary),
        sys::GGML_OP_GLU => read_glu(params[0] as u32, params).map(Op::Glu),
        sys::GGML_OP_PERMUTE => Some(Op::Permute([0, 1, 2, 3].map(|i| params[i] as usize))),
        sys::GGML_OP_TRANSPOSE => Some(Op::Permute([1, 0, 2, 3])),
        // Elements before and after each dimension, and whether the padding is circular: only zeros after.
        sys::GGML_OP_PAD if [0, 2, 4, 6, 8].iter().all(|&i| params[i] == 0) => {
            Some(Op::Pad([1, 3, 5, 7].map(|i| params[i] as usize)))
        }
        // More than one state of each sequence (for rolling back) is of no use here.
        sys::GGML_OP_SSM_SCAN if params[0] == 1 => Some(Op::SsmScan),
        sys::GGML_OP_RWKV_WKV6 => Some(Op::MatrixScan(MatrixScan::Wkv6)),
        sys::GGML_OP_RWKV_WKV7 => Some(Op::MatrixScan(MatrixScan::Wkv7)),
        sys::GGML_OP_GATED_LINEAR_ATTN => Some(Op::MatrixScan(MatrixScan::Gated { scale: f32::read(params[0]) })),
        sys::GGML_OP_GATED_DELTA_NET if params[0] == 1 => Some(Op::MatrixScan(MatrixScan::DeltaNet)),
        // Parameter 1 is set where the weights are gates, one for each number.
        sys::GGML_OP_DSV4_HC_PRE if params[1] == 0 => Some(Op::MixStreams { scale: f32::read(params[0]) }),
        _ => read_op(code, params),
    }
}

/// ggml's op and parameters for one of the IR's; None for one that ggml does not compute.
pub(super) fn emit(op: Op) -> Option<(sys::ggml_op, OpParams)> {
    let mut params = [0; 16];
    let code = match op {
        Op::MulMat(p) => return Some((sys::GGML_OP_MUL_MAT, p)),
        Op::MulMatId(p) => return Some((sys::GGML_OP_MUL_MAT_ID, p)),
        Op::Rope(p) => return Some((sys::GGML_OP_ROPE, p)),
        Op::RopeBack(p) => return Some((sys::GGML_OP_ROPE_BACK, p)),
        Op::Other { code, params, .. } => return Some((code, params)),
        Op::Unary(kind) => {
            params[0] = write_unary(kind, &mut params)? as i32;
            sys::GGML_OP_UNARY
        }
        Op::Glu(kind) => {
            params[0] = write_glu(kind, &mut params)? as i32;
            sys::GGML_OP_GLU
        }
        Op::Pad(extra) => {
            for (i, n) in extra.into_iter().enumerate() {
                params[2 * i + 1] = n as i32;
            }
            sys::GGML_OP_PAD
        }
        Op::Acc { nb, offset } => {
            for (param, n) in params.iter_mut().zip(nb.into_iter().chain([offset])) {
                *param = n as i32;
            }
            sys::GGML_OP_ACC
        }
        // A mask only shifts scores by constants, so ALiBi's bias has no part in the gradient: ggml insists on 0.
        Op::SoftMaxBack { scale } => {
            params[0] = scale.write();
            sys::GGML_OP_SOFT_MAX_BACK
        }
        Op::SsmScan => {
            params[0] = 1;
            sys::GGML_OP_SSM_SCAN
        }
        Op::MixStreams { scale } => {
            params[0] = scale.write();
            sys::GGML_OP_DSV4_HC_PRE
        }
        Op::MatrixScan(MatrixScan::Wkv6) => sys::GGML_OP_RWKV_WKV6,
        Op::MatrixScan(MatrixScan::Wkv7) => sys::GGML_OP_RWKV_WKV7,
        Op::MatrixScan(MatrixScan::Gated { scale }) => {
            params[0] = scale.write();
            sys::GGML_OP_GATED_LINEAR_ATTN
        }
        Op::MatrixScan(MatrixScan::DeltaNet) => {
            params[0] = 1;
            sys::GGML_OP_GATED_DELTA_NET
        }
        Op::GetRowsBack => sys::GGML_OP_GET_ROWS_BACK,
        Op::RepeatBack => sys::GGML_OP_REPEAT_BACK,
        op => write_op(op, &mut params)?,
    };
    Some((code, params))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lifted op is emitted as it was.
    #[test]
    fn rows_read_the_same_both_ways() {
        let bits = |x: f32| x.to_bits() as i32;
        let params = |values: &[i32]| {
            let mut params = [0; 16];
            params[..values.len()].copy_from_slice(values);
            params
        };
        for (code, params) in [
            (sys::GGML_OP_ADD, params(&[])),
            (sys::GGML_OP_SCALE, params(&[bits(0.5), bits(-2.0)])),
            (sys::GGML_OP_SOFT_MAX, params(&[bits(0.125), bits(8.0)])),
            (sys::GGML_OP_CONCAT, params(&[2])),
            (sys::GGML_OP_SSM_SCAN, params(&[1])),
            (sys::GGML_OP_DSV4_HC_PRE, params(&[bits(0.5), 0])),
            (sys::GGML_OP_RWKV_WKV6, params(&[])),
            (sys::GGML_OP_RWKV_WKV7, params(&[])),
            (sys::GGML_OP_GATED_LINEAR_ATTN, params(&[bits(0.125)])),
            (sys::GGML_OP_GATED_DELTA_NET, params(&[1])),
            (sys::GGML_OP_PAD, params(&[0, 1, 0, 2, 0, 3, 0, 4])),
            (sys::GGML_OP_ROPE, params(&[0, 64, 2, 7, bits(1e4)])),
            (sys::GGML_OP_UNARY, params(&[sys::GGML_UNARY_OP_XIELU as i32, bits(0.1), bits(0.2), bits(0.3), 5])),
            (sys::GGML_OP_GLU, params(&[sys::GGML_GLU_OP_SWIGLU_OAI as i32, 0, bits(1.7), bits(7.0)])),
        ] {
            let op = lift(code, &params).unwrap();
            assert_eq!(emit(op), Some((code, params)), "{op:?}");
        }
        assert_eq!(lift(sys::GGML_OP_PAD, &params(&[1, 1])), None, "padding in front");
        assert_eq!(lift(sys::GGML_OP_SSM_SCAN, &params(&[3])), None, "three states of each sequence");
        assert_eq!(lift(sys::GGML_OP_DSV4_HC_PRE, &params(&[0, 1])), None, "gates in place of weights");
        assert_eq!(lift(sys::GGML_OP_SOFT_MAX_BACK, &params(&[])), None, "an op of gradients");
    }
}
