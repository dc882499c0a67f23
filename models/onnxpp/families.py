"""Which operators cost alike, and what those that work element by element do for each.

Every operator of the standard is named here: a test sees to it that none is element-wise by default. What hangs on
strings is counted as one operation an element; it is no floating-point work, but it is not nothing either.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ELEMENTWISE", "FAMILIES", "FAMILY_OF", "FAMILY_OPERATORS", "PER_ELEMENT", "family"]

FAMILY_OPERATORS = {
    "matmul": "MatMul Gemm Einsum MatMulInteger QLinearMatMul Attention LinearAttention FlexAttention LinearClassifier "
    "LinearRegressor SVMClassifier SVMRegressor",
    "conv": "Conv ConvTranspose ConvInteger QLinearConv DeformConv CausalConvWithState",
    "normalisation": "BatchNormalization LayerNormalization InstanceNormalization GroupNormalization LRN "
    "LpNormalization MeanVarianceNormalization RMSNormalization Normalizer",
    "softmax": "Softmax LogSoftmax Hardmax",
    "pooling": "MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool GlobalLpPool MaxRoiPool RoiAlign MaxUnpool",
    "gather": "Gather GatherElements GatherND Scatter ScatterElements ScatterND TensorScatter OneHot Compress "
    "NonZero Unique ArrayFeatureExtractor GridSample TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor",
    "reduction": "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceSumSquare ArgMax ArgMin CumSum CumProd TopK",
    "movement": "Transpose Concat Split Slice Pad Expand Tile Cast CastLike Resize Upsample DepthToSpace SpaceToDepth "
    "ReverseSequence ConstantOfShape Range EyeLike Trilu Im2Col Col2Im CenterCropPad BitCast SplitToSequence "
    "ConcatFromSequence FeatureVectorizer ImageDecoder",
    "view": "Identity Reshape Flatten Squeeze Unsqueeze Shape Size Constant Optional OptionalGetElement OptionalHasElement "
    "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength ZipMap",
    "rnn": "RNN LSTM GRU Loop Scan SequenceMap",
    "loss": "SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss",
}
FAMILY_OF = {op_type: name for name, operators in FAMILY_OPERATORS.items() for op_type in operators.split()}
FAMILIES = (*FAMILY_OPERATORS, "elementwise")

# Element by element: one result for each element (or text, or row of a table) of the operands.
_ELEMENTWISE = """
    Abs Acos Acosh Add AffineGrid And Asin Asinh Atan Atanh Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    BlackmanWindow Ceil Celu Clip Cos Cosh DFT DequantizeLinear Det Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp
    Floor Gelu Greater GreaterOrEqual HammingWindow HannWindow HardSigmoid HardSwish If IsInf IsNaN LeakyRelu Less
    LessOrEqual Log Max Mean MelWeightMatrix Min Mish Mod Mul Multinomial Neg NonMaxSuppression Not Or PRelu Pow
    QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal RegexFullMatch Relu
    RotaryEmbedding Round STFT Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt StringConcat StringNormalizer
    StringSplit Sub Sum SwiGLU Swish Tan Tanh TfIdfVectorizer ThresholdedRelu Where Xor
    Binarizer CastMap CategoryMapper DictVectorizer Imputer LabelEncoder OneHotEncoder Scaler
    Adagrad Adam Gradient Momentum
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())

# FLOPs per element of the result; 1 where nothing is said.
PER_ELEMENT: Mapping[str, int] = {
    "AffineGrid": 6,
    "BatchNormalization": 2,
    "BlackmanWindow": 6,
    "Celu": 4,
    "Clip": 2,
    "DequantizeLinear": 2,
    "Dropout": 2,
    "DynamicQuantizeLinear": 6,
    "Elu": 3,
    "Gelu": 5,
    "HammingWindow": 3,
    "HannWindow": 3,
    "HardSigmoid": 4,
    "HardSwish": 5,
    "GroupNormalization": 7,
    "InstanceNormalization": 7,
    "LayerNormalization": 7,
    "LeakyRelu": 2,
    "LogSoftmax": 5,
    "MeanVarianceNormalization": 7,
    "Mish": 6,
    "NegativeLogLikelihoodLoss": 1,
    "PRelu": 2,
    "QuantizeLinear": 4,
    "QuickGelu": 5,
    "RMSNormalization": 4,
    "RotaryEmbedding": 3,
    "Scaler": 2,
    "Selu": 4,
    "Sigmoid": 4,
    "Softmax": 5,
    "SoftmaxCrossEntropyLoss": 6,
    "Softplus": 3,
    "Softsign": 3,
    "SwiGLU": 6,
    "Swish": 5,
    "Tanh": 5,
    "ThresholdedRelu": 2,
}


def family(op_type: str, *, shape_arithmetic: bool = False) -> str:
    """The family of operators that cost alike; `shape_arithmetic` marks integers computed from shapes alone: no work.

    >>> family("Conv"), family("Tanh"), family("Concat"), family("Concat", shape_arithmetic=True)
    ('conv', 'elementwise', 'movement', 'view')
    """
    return "view" if shape_arithmetic else FAMILY_OF.get(op_type, "elementwise")
