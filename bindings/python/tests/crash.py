"""That a crash of the library, which is stripped, can be read by the file that was kept of it:

    python crash.py DEBUG_FILE

lets a child crash within a call, takes the address as a crash report has it, and asks addr2line whose it is. Linux on x86-64 only.
"""

import ctypes
import os
import pathlib
import platform
import signal
import subprocess
import sys

from ampoule._native import ampoule_native as native

LIBRARY = next(pathlib.Path(native.__file__).parent.glob("*.so"))
FUNCTION = "uniffi_ampoule_bindings_fn_method_canceltoken_cancel"
GETREGS, TRACEME, RIP = 12, 0, 16


def build_id(path):
    notes = subprocess.run(["readelf", "--notes", path], check=True, text=True, stdout=subprocess.PIPE).stdout
    (line,) = [line for line in notes.splitlines() if "Build ID" in line]
    return line.split()[-1]


def crashed():
    """The address in the library at which a call with a handle to nowhere crashes, from the library's start."""
    libc = ctypes.CDLL(None)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    child = os.fork()
    if not child:
        libc.ptrace(TRACEME, 0, None, None)
        status = native._UniffiRustCallStatus.default()
        getattr(native._UniffiLib, FUNCTION)(4096, ctypes.byref(status))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSEGV, f"the child did not crash: {status}"
    registers = (ctypes.c_ulong * 27)()
    assert libc.ptrace(GETREGS, child, None, registers) == 0
    maps = [line.split() for line in pathlib.Path(f"/proc/{child}/maps").read_text().splitlines()]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    places = [[int(end, 16) for end in line[0].split("-")] for line in maps if line[-1] == str(LIBRARY.resolve())]
    address = registers[RIP]
    assert any(start <= address < end for start, end in places), "the crash is not in the library"
    return address - min(start for start, _ in places)


assert platform.machine() == "x86_64"
debug = sys.argv[1]
assert build_id(LIBRARY) == build_id(debug), "the library is not the one that the file was kept of"
address = hex(crashed())


def names(path):
    return subprocess.run(["addr2line", "-Cfipe", path, address], check=True, text=True, stdout=subprocess.PIPE).stdout


SOURCE = "bindings/src/stream.rs:"
assert SOURCE not in names(LIBRARY), "the library is not stripped"
# The innermost of what the compiler has inlined comes first.
frames = names(debug).splitlines()
print(f"a crash at {address} of build {build_id(debug)}: {frames[-1].strip()}")
assert FUNCTION in frames[-1] and SOURCE in frames[-1], "addr2line names another function"
