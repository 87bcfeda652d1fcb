"""Ways to damage a file of weights, or to make it lie, each drawn from a random.Random."""

import io
import json
import pickletools
import warnings
import zipfile
from itertools import pairwise

NUMBERS = (-1, 0, 1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64, 10**9, 10**30)
STRANGE = (*NUMBERS, 1.5, float("nan"), "", "x", "\n", "\x1b[2J", "a" * 5000, None, True, [], {}, [[]], {"a": 1})
DEEP = "[" * 30_000 + "]" * 30_000
GLOBALS = (
    *("os system", "posix system", "builtins eval", "__builtin__ exec", "builtins bytearray", "builtins getattr"),
    *("torch load", "torch.storage UntypedStorage", "torch FloatTensor", "torch._utils _rebuild_sparse_tensor"),
    *("torch._utils _rebuild_qtensor", "torch._utils _rebuild_meta_tensor_no_storage", "numpy.core.multiarray scalar"),
    *("collections OrderedDict", "torch Size", "torch FloatStorage", "collections Counter", "_codecs encode"),
)
PAIRS = b")" + b"q\xf0h\xf0\x86" * 64  # 64 nested pairs, each of one thing twice: () * 2^64 to whoever walks them
HOSTILE = (  # pieces of pickles
    PAIRS,
    b"}" + PAIRS + b"Ns",
    b"\x8a\xff" + b"\x7f" * 255,
    b"X\xff\xff\xff\xff",
    b"r\xff\xff\xff\xffN",
    b"j\xff\xff\xff\xff",
    b"(" * 100_000,
    b"]" * 100_000,
    b")" + b"\x85" * 100_000,
    *(b"c" + name.replace(" ", "\n").encode() + b"\n" for name in GLOBALS),
    *(b"c" + name.replace(" ", "\n").encode() + b"\nJ\xff\xff\xff\x7f\x85R" for name in GLOBALS),
)


def mutate(content, random):
    """(what was done, the changed bytes) of one file of weights."""
    ways = [flip, cut, insert, remove, repeat, overwrite]
    if content[8:9] == b"{":
        ways += [change_header] * 6
    elif content.startswith(b"PK"):
        ways += [change_directory] * 4 + [change_zipped_pickle] * 6 + [rezip]
    else:
        ways += [change_old_pickle] * 6
    names, count = [], random.choice((1, 1, 1, 2, 3))
    for _ in range(count):
        way = random.choice(ways)
        try:
            content = way(content, random)
        except Exception:
            if not names:
                raise
            continue  # the change before it has left nothing that this one could work on
        names.append(way.__name__)
    return " + ".join(names) or "nothing", content


def spot(content, random):
    """A place in a file: half of the time near its begin or end, where descriptions are."""
    near = min(len(content), 4000)
    return random.choice(
        (random.randrange(near), len(content) - 1 - random.randrange(near), random.randrange(len(content)))
    )


def flip(content, random):
    """Change some bits."""
    content = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        content[spot(content, random)] ^= 1 << random.randrange(8)
    return bytes(content)


def cut(content, random):
    """Take the end off."""
    return content[: spot(content, random)]


def insert(content, random):
    """Put random bytes in."""
    at = spot(content, random)
    return content[:at] + random.randbytes(random.choice((1, 4, 8, 1000))) + content[at:]


def remove(content, random):
    """Take bytes out."""
    at = spot(content, random)
    return content[:at] + content[at + random.choice((1, 4, 8, 1000)) :]


def repeat(content, random):
    """Copy a piece to somewhere else."""
    begin, to = spot(content, random), spot(content, random)
    piece = content[begin : begin + random.choice((1, 8, 64, 1000))]
    return content[:to] + piece + content[to + len(piece) * random.randrange(2) :]


def overwrite(content, random):
    """Put an extreme number of 1, 2, 4 or 8 bytes somewhere."""
    size = random.choice((1, 2, 4, 8))
    at = spot(content, random)
    return content[:at] + (random.choice(NUMBERS) % 256**size).to_bytes(size, "little") + content[at + size :]


def change_header(content, random):
    """Make the JSON of a safetensors file lie."""
    length = int.from_bytes(content[:8], "little")
    header, numbers = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.get("__metadata__", {})
    way = random.randrange(8)
    names = [name for name in header if name != "__metadata__"]
    name = random.choice(names)
    if way == 0:
        header[name][random.choice(("dtype", "shape", "data_offsets", "more"))] = random.choice(STRANGE)
    elif way == 1:
        field = random.choice(("shape", "data_offsets"))
        header[name][field][random.randrange(len(header[name][field]))] = random.choice(STRANGE)
    elif way == 2:
        other = random.choice(names)
        header[name], header[other] = header[other], header[name]
    elif way == 3:
        header[random.choice(("", "x\n", "a" * 10_000, name + ".more", "\ud800"))] = header.pop(name)
    elif way == 4:
        header["__metadata__"] = random.choice(STRANGE)
    elif way == 5 and metadata:
        metadata[random.choice(list(metadata))] = random.choice((DEEP, "", "null", json.dumps(random.choice(STRANGE))))
    elif way == 6 and metadata:
        key = random.choice([key for key, text in metadata.items() if text[:1] in "[{"] or list(metadata))
        value = json.loads(metadata[key]) if metadata[key][:1] in "[{" else metadata[key]
        metadata[key] = json.dumps(change_value(value, random))
    encoded = json.dumps(header)
    if way == 7:
        encoded = encoded.replace(f'"{name}":', f'"{random.choice(names)}":', 1)
    changed = encoded.encode()
    length = random.choice((len(changed),) * 9 + NUMBERS) % 2**64
    return length.to_bytes(8, "little") + changed + numbers


def change_value(value, random):
    """Put something strange somewhere into JSON."""
    if isinstance(value, dict | list) and value and random.random() < 0.9:
        key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
        value[key] = change_value(value[key], random)
        return value
    if isinstance(value, list):
        return value * random.choice((0, 2, 1000, 100_000)) + [random.choice(STRANGE)]
    return random.choice(STRANGE)


def change_directory(content, random):
    """Change the fields of a ZIP's list of entries, or of an entry's own header."""
    content = bytearray(content)
    mark = random.choice((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"))
    places = [at for at in range(len(content) - 4) if content.startswith(mark, at)]
    at = random.choice(places) + random.randrange(4, 56)
    size = random.choice((1, 2, 4, 8))
    content[at : at + size] = (random.choice((*NUMBERS, random.getrandbits(16))) % 256**size).to_bytes(size, "little")
    return bytes(content)


def change_zipped_pickle(content, random):
    """Change the instructions of a checkpoint's pickle, with the right checksum."""
    return rezip(content, random, lambda pickle: change_pickle(pickle, random))


def rezip(content, random, change=None):
    """Write a ZIP again, changed in its pickle, or else compressed, without an entry, or with one twice."""
    made = io.BytesIO()
    way = None if change else random.choice(("compressed", "lacking", "twice", "long"))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    chosen = random.randrange(len(entries))
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED if way == "compressed" else zipfile.ZIP_STORED) as archive:
        for number, (name, data) in enumerate(entries):
            if change and name.endswith("/data.pkl"):
                data = change(data)
            if number == chosen and way == "long":
                data += bytes(random.choice((1, 1000, 100_000)))
            if number != chosen or way != "lacking":
                archive.writestr(name, data)
            if number == chosen and way == "twice":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that the name is there already is the point
                    archive.writestr(name + random.choice((".", "")), data)
    return made.getvalue()


def change_old_pickle(content, random):
    """Change the instructions of one of the five pickles at the begin of an old file."""
    file, begins = io.BytesIO(content), []
    for _ in range(5):
        begins.append(file.tell())
        for _ in pickletools.genops(file):
            pass
    begins.append(file.tell())
    chosen = random.choice((0, 1, 2, 3, 3, 3, 3, 4))
    begin, end = begins[chosen], begins[chosen + 1]
    return content[:begin] + change_pickle(content[begin:end], random) + content[end:]


def change_pickle(pickle, random):
    """Take out, double, exchange or change an instruction, or put a hostile one in."""
    starts = [at for _, _, at in pickletools.genops(pickle)] + [len(pickle)]
    ops = [pickle[begin:end] for begin, end in pairwise(starts)]
    at, other = (random.randrange(len(ops)) for _ in range(2))
    way = random.randrange(7)
    if way == 0:
        del ops[at]
    elif way == 1:
        ops.insert(at, ops[other])
    elif way == 2:
        ops[at], ops[other] = ops[other], ops[at]
    elif way == 3:
        ops.insert(at, random.choice(HOSTILE))
    elif way == 4:
        ops[at] = random.choice(HOSTILE)
    elif way == 5:
        ops[at] = bytes([random.randrange(256)]) + ops[at][1:]
    else:  # a number of a shape, a stride, an offset or a length
        numbers = [i for i, op in enumerate(ops) if op[:1] in (b"K", b"M", b"J")]
        ops[random.choice(numbers or [at])] = b"\x8a\x09" + (random.choice(NUMBERS[:-1]) % 2**72).to_bytes(9, "little")
    return b"".join(ops)
