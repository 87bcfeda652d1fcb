"""The pickles that torch.save writes, interpreted here: a pickle is a program, and this runs none of its calls.

The standard library's pickletools reads the instructions, without obeying any. Those that build dictionaries, lists,
tuples, texts and numbers are followed. A name of Python is looked up in a table of the few that weights need, and never
imported; a call makes a description, such as that of a tensor, by a line of this file. Everything else is refused.

torch.load(weights_only=True) is no substitute. Through it a file could run code up to torch 2.5.1 (CVE-2025-32434) and
corrupt memory below 2.10 (CVE-2026-24747). It still obeys calls that fill the memory (bytearray, storages of any size)
and hashes what a file makes it hash: a tuple of 60 nested pairs as a key takes for ever.
"""

import pickletools
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch

from ldm_us.files.stored_tensor import Storage, StoredTensor, check_shape, shown, span

MAX_WORK = 1_000_000  # instructions; about 45 a tensor

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
BUILTINS = ("builtins", "__builtin__")  # of protocol 3 on, and before
PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
PARAMETERS = "torch.nn.modules.container.ParameterDict"  # LDM's textual inversions are in one
CALLS = (
    *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor", "torch._utils._rebuild_parameter"),
    *("torch.Size", "collections.OrderedDict", "collections.Counter", "_codecs.encode"),
    *(f"{module}.set" for module in BUILTINS),
    "collections.defaultdict",
)
BESIDE = (  # calls that make what trainers keep beside the weights: scalars and arrays of NumPy, dates; not made here
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "torch.device", "torch.torch_version.TorchVersion", "argparse.Namespace"),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"{module}.{path}" for module in ("pathlib", "pathlib._local") for path in PATHS),
    PARAMETERS,
)
NAMES_ALONE = (  # no calls
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",  # a key of a dictionary in sd-v1-4.ckpt
    "numpy.ndarray",
    *(f"{module}.{name}" for module in BUILTINS for name in ("dict", "list", "int", "float", "str")),  # of defaultdict
    *(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)),
)
ALLOWED = {*CALLS, *BESIDE, *NAMES_ALONE, *(f"torch.{name}" for name in STORAGES)}

KEYS = (str, int, float, bytes, type(None))  # with Name: types whose hash takes no long time
PLAIN = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "STRING"),
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class RefusedPickleError(ValueError):
    """A pickle that asks for what weights do not need."""


@dataclass(frozen=True)
class Name:
    """A name of Python that stands in a pickle, or for the result of a call of it. It was not looked up."""

    text: str


@dataclass
class Program:
    """What the instructions of one pickle work on."""

    stack: list[Any] = field(default_factory=list)
    outer: list[list[Any]] = field(default_factory=list)  # the stacks below each MARK
    memo: dict[int, Any] = field(default_factory=dict)
    storages: list[Storage] = field(default_factory=list)  # all that were named
    work: int = 0  # instructions followed, and items copied by calls

    def since_mark(self) -> list[Any]:
        """Everything above the last MARK, which is taken off."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def charge(self, work: int) -> None:
        """Count work; a call that copies a list takes as much of it as the list is long."""
        self.work += work
        if self.work > MAX_WORK:
            raise RefusedPickleError(f"this pickle has more than {MAX_WORK} instructions")


def run_pickle(file: BinaryIO) -> tuple[Any, list[Storage]]:
    """What the pickle at the position of `file` describes, and every storage it names; `file` then stands behind it.

    Raise RefusedPickleError for a name, call or instruction that weights do not need; for damage any ValueError,
    LookupError, TypeError or ArithmeticError.
    """
    program = Program()
    for instruction, argument, _ in pickletools.genops(file):
        program.charge(1)
        if instruction.name == "STOP":
            return program.stack.pop(), program.storages
        _step(program, instruction.name, argument)
    raise ValueError("it has no end")


def _step(program: Program, name: str, argument: Any) -> None:
    stack = program.stack
    if name in PLAIN:
        stack.append(argument)
    elif name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name in ("BINPUT", "LONG_BINPUT"):
        program.memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        program.memo[len(program.memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(program.memo[argument])
    elif name == "MARK":
        program.outer.append(stack)
        program.stack = []
    elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
        stack.append({} if name == "EMPTY_DICT" else [])
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        if len(stack) < count:
            raise IndexError("a tuple of more items than there are")
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "TUPLE":
        items = tuple(program.since_mark())
        program.stack.append(items)
    elif name not in ("PROTO", "FRAME"):
        _change(program, name, argument)


def _change(program: Program, name: str, argument: Any) -> None:
    """The instructions that name something of Python, call it, or change a container."""
    if name == "GLOBAL":
        program.stack.append(_allowed(argument.replace(" ", ".", 1)))
    elif name == "STACK_GLOBAL":
        module, attribute = program.stack.pop(-2), program.stack.pop()
        texts = isinstance(module, str) and isinstance(attribute, str)
        program.stack.append(_allowed(f"{module}.{attribute}" if texts else "a name that is no text"))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments = program.stack.pop()
        program.stack[-1] = _call(program, program.stack[-1], arguments)
    elif name == "BINPERSID":
        program.stack[-1] = _storage(program.stack[-1])
        program.storages.append(program.stack[-1])
    elif name == "BUILD":  # attributes of an OrderedDict, such as state_dict()._metadata; content of an array
        state = program.stack.pop()
        if program.stack[-1] == Name(PARAMETERS):
            program.stack[-1] = _container([state["_parameters"]], dict)
        elif not (isinstance(program.stack[-1], Name) and program.stack[-1].text in BESIDE):
            _container(program.stack, dict)
    elif name in ("SETITEM", "SETITEMS"):
        items = program.since_mark() if name == "SETITEMS" else [program.stack.pop(-2), program.stack.pop()]
        _container(program.stack, dict).update(_pairs(zip(items[::2], items[1::2], strict=True)))
    elif name in ("APPEND", "APPENDS", "ADDITEMS"):
        items = [program.stack.pop()] if name == "APPEND" else program.since_mark()
        _container(program.stack, list).extend(items)
    elif name == "INST":
        raise RefusedPickleError(f"this pickle asks for {shown(argument.replace(' ', '.', 1))}")
    else:
        raise RefusedPickleError(f"this pickle uses the instruction {name}")


def _allowed(name: str) -> Name:
    if name not in ALLOWED:
        raise RefusedPickleError(f"this pickle asks for {shown(name)}")
    return Name(name)


def _container(stack: list[Any], kind: type) -> Any:
    if type(stack[-1]) is not kind:
        raise TypeError(f"it changes a {type(stack[-1]).__name__} as if it were a {kind.__name__}")
    return stack[-1]


def _pairs(items: Any) -> dict[Any, Any]:
    pairs = [(key, value) for key, value in items]
    strange = next((key for key, _ in pairs if not isinstance(key, (*KEYS, Name))), None)
    if strange is not None:
        raise RefusedPickleError(f"this pickle uses a {type(strange).__name__} as the key of a dictionary")
    return dict(pairs)


def _call(program: Program, function: Any, arguments: Any) -> Any:
    """What stands for the result of one of CALLS."""
    called = function.text if isinstance(function, Name) else f"a {type(function).__name__}"
    if called not in (*CALLS, *BESIDE) or not isinstance(arguments, tuple):
        raise RefusedPickleError(f"this pickle calls {shown(called)}")
    if called in BESIDE:
        return Name(called)
    if called.startswith("torch._utils._rebuild_tensor"):
        return _tensor(*arguments[:4])
    if called == "torch._utils._rebuild_parameter":
        return arguments[0]
    if called == "_codecs.encode":  # how protocol 2 writes bytes
        text, encoding = arguments
        if encoding != "latin1" or not isinstance(text, str):
            raise RefusedPickleError("this pickle calls _codecs.encode for more than bytes")
        program.charge(len(text) // 16)
        return text.encode("latin1")
    if called == "collections.defaultdict":
        return {}
    (content,) = arguments or ((),)
    if called == "torch.Size":
        return check_shape(content)
    program.charge(len(content))
    if called in [f"{module}.set" for module in BUILTINS]:
        return list(content)
    return _pairs(content.items() if isinstance(content, dict) else content)


def _storage(persistent: Any) -> Storage:
    """("storage", type, key, device, number of elements[, view]); the device does not matter here."""
    kind, name, key, _, elements, *view = persistent
    known = isinstance(name, Name) and name.text.removeprefix("torch.") in STORAGES
    if kind not in ("storage", b"storage") or not known or not isinstance(key, str) or view not in ([], [None]):
        raise ValueError("it describes numbers in an unknown way")
    if type(elements) is not int or elements < 0:
        raise ValueError("it describes a number of numbers that is none")
    return Storage(key, STORAGES[name.text.removeprefix("torch.")], elements)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    """A view of a storage. Refuse one that reaches beyond it, or that repeats its numbers to look larger than it is."""
    shape, stride = check_shape(shape), check_shape(stride)
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0 or len(stride) != len(shape):
        raise ValueError("it describes a tensor without storage, or with an offset or strides that are none")
    elements = span(shape, stride)
    if offset + elements > storage.elements:
        raise ValueError(f"a tensor of shape {list(shape)} reaches beyond its {storage.elements} numbers")
    if torch.Size(shape).numel() > storage.elements:
        raise ValueError(f"a tensor of shape {list(shape)} repeats its {storage.elements} numbers")
    return StoredTensor(storage, shape, stride, offset)
