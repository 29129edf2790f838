"""Names that pickles of torch's files may ask for; `torch_pickle` looks them up, and runs none."""

from __future__ import annotations

from vmae_jax.weights.tensors import DTYPES

ITEM_BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {
    # known, but not read
    **{"complex32": 4, "complex64": 8, "complex128": 16},
    **{"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1},
    **{"float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1},
    **{"float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1},
}
STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.QInt8Storage": "qint8",
    "torch.QUInt8Storage": "quint8",
    "torch.QInt32Storage": "qint32",
    "torch.QUInt4x2Storage": "quint4x2",
    "torch.QUInt2x4Storage": "quint2x4",
    "torch.UntypedStorage": "uint8",
    "torch.storage.UntypedStorage": "uint8",
}
# What training scripts leave beside the weights: of these, name, arguments and state are kept.
_INERT = """
    argparse Namespace
    builtins object int float complex bool str bytes bytearray list tuple dict set frozenset
    builtins range slice
    _codecs encode
    collections Counter deque
    copyreg _reconstructor
    datetime date datetime timedelta
    deepspeed.runtime.fp16.loss_scaler LossScaler DynamicLossScaler
    deepspeed.runtime.zero.config ZeroStageEnum
    deepspeed.utils.tensor_fragment fragment_address
    mmengine.logging.history_buffer HistoryBuffer
    numpy dtype ndarray bool_ int32 int64 float32 float64
    numpy.core.multiarray scalar _reconstruct
    numpy._core.multiarray scalar _reconstruct
    numpy.core.numeric _frombuffer
    numpy._core.numeric _frombuffer
    numpy.dtypes BoolDType Int32DType Int64DType UInt32DType Float32DType Float64DType
    pathlib Path PosixPath PurePosixPath WindowsPath PureWindowsPath
    torch device Generator Tensor per_tensor_affine per_channel_affine
    torch._utils _rebuild_sparse_tensor _rebuild_nested_tensor _rebuild_meta_tensor_no_storage
    torch._utils _rebuild_wrapper_subclass _rebuild_device_tensor_from_numpy
    torch.nn.parameter Parameter
    torch.serialization _get_layout
    types SimpleNamespace
"""
# Where some versions of Python have, or had, the same.
MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "pathlib._local": "pathlib"}


def _names() -> set[str]:
    names = {f"torch.{dtype}" for dtype in ITEM_BYTES} | STORAGES.keys()
    for line in _INERT.split("\n"):
        module, *members = line.split() or [""]
        names |= {f"{module}.{member}" for member in members}
    return names


KNOWN_NAMES = _names()  # the functions of `torch_pickle.BUILDERS` come to them
