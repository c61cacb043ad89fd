"XTF files, written by the description of the format."
import struct


def xtf_head(channels=(1, 2), size=2, units=3, frequencies=(100, 500)):
    "1024 bytes, by the description of the format."
    head = bytearray(1024)
    head[0], head[1] = 123, 1
    struct.pack_into('<HH', head, 164, units, len(channels))
    for i, kind in enumerate(channels):
        struct.pack_into('<BBHHHI', head, 256+128*i, kind, i, 0, 0, size, 0)
        struct.pack_into('<f', head, 256+128*i+32, frequencies[i//2])
    return bytes(head)


def xtf_ping(sides, number=0, at=(11.5, 54.25), reach=50., numbers=None, weight=0):
    "A packet of arrays, one a channel."
    head = bytearray(256)
    size = 256+sum(64+a.nbytes for a in sides)
    struct.pack_into('<HBBHHHI', head, 0, 0xFACE, 0, 0, len(sides), 0, 0, size)
    struct.pack_into('<HBBBBBB', head, 14, 2021, 3, 4, 5, 6, number % 60, 0)
    struct.pack_into('<I', head, 28, number)
    struct.pack_into('<dd', head, 160, at[1], at[0])
    struct.pack_into('<f', head, 196, 10.)
    struct.pack_into('<f', head, 212, 90.)
    out = [bytes(head)]
    for i, a in enumerate(sides):
        c = bytearray(64)
        struct.pack_into('<HHf', c, 0, i if numbers is None else numbers[i], 0, reach)
        struct.pack_into('<I', c, 42, len(a))
        struct.pack_into('<h', c, 58, weight)
        out += [bytes(c), a.tobytes()]
    return b''.join(out)
