"""Attacks on the code sandbox: each is refused, leaks nothing, and leaves the pool fit for the next run."""

import os
import socket
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from handlers.steps.code import CodeRunner
from handlers.steps.port import StepFailed

SECRET = "canary-5f3a91"
ENDLESS_SECONDS = 0.5
"""For what may be endless; all else has time enough on a busy machine."""

DENIED = frozenset({"code_error", "code_unsupported"})
STOPPED = DENIED | {"code_memory", "timeout", "output_too_large", "code_result_invalid"}

# What plain exec in this process gives away or lets happen: the proof that the canaries can sing.
LEAKS_WITHOUT_A_SANDBOX = {
    "environment": "import os\nresult = os.environ['CANARY']",
    "environment by getenv": "import os\nresult = os.getenv('CANARY')",
    "environment in bytes": "import os\nresult = repr(os.environb)",
    "environment of this process": "import os\nresult = os.popen('printenv CANARY').read()",
    "file by open": "result = open(payload['file']).read()",
    "file by pathlib": "import pathlib\nresult = pathlib.Path(payload['file']).read_text()",
    "file by os.open": "import os\nresult = os.read(os.open(payload['file'], os.O_RDONLY), 99).decode()",
    "file by io": "import io\nresult = io.open(payload['file']).read()",
    "file by io.FileIO": "import io\nresult = io.FileIO(payload['file']).read().decode()",
    "file by codecs": "import codecs\nresult = codecs.open(payload['file'], encoding='utf-8').read()",
    "file by linecache": "import linecache\nresult = linecache.getline(payload['file'], 1)",
    "file by fileinput": "import fileinput\nresult = ''.join(fileinput.input(payload['file']))",
    "file by mmap": (
        "import mmap, os\nresult = mmap.mmap(os.open(payload['file'], 0), 0, prot=mmap.PROT_READ)[:].decode()"
    ),
    "file by sendfile": (
        "import os\nreader, writer = os.pipe()\nsource = os.open(payload['file'], 0)\n"
        "os.sendfile(writer, source, 0, 99)\nresult = os.read(reader, 99).decode()"
    ),
    "file by a symbolic link": (
        "import os\nos.symlink(payload['file'], payload['folder'] + '/link')\n"
        "result = open(payload['folder'] + '/link').read()"
    ),
    "file by a path that climbs": "result = open('/tmp/../../../..' + payload['file']).read()",
    "file by subprocess": "import subprocess\nresult = subprocess.check_output(['cat', payload['file']], text=True)",
    "file by the loader": (
        "import importlib.machinery as m\nresult = m.SourceFileLoader('x', payload['file']).get_data(payload['file'])"
    ),
    "file by logging's back door": (
        "import logging.config as c\nresult = c.dictConfig.__globals__['__builtins__']['open'](payload['file']).read()"
    ),
    "file by tokenize": "import tokenize\nresult = tokenize.open(payload['file']).read()",
    "file by runpy": "import runpy\nrunpy.run_path(payload['file'])",
    "file by listing": "import os\nresult = os.listdir(payload['folder'])",
    "file by glob": "import glob\nresult = glob.glob(payload['folder'] + '/*')",
    "file by scandir": "import os\nresult = [e.name for e in os.scandir(payload['folder'])]",
    "file by walk": "import os\nresult = next(iter(os.walk(payload['folder'])))",
    "file through a descriptor of ours": "import os\nresult = os.pread(payload['descriptor'], 99, 0).decode()",
    "file through /proc/self/fd": "result = open(f'/proc/self/fd/{payload[\"descriptor\"]}').read()",
    "file through our own /proc": 'result = open(f\'/proc/{payload["pid"]}/fd/{payload["descriptor"]}\').read()',
    "write a file": "open(payload['written'], 'w').write('x')",
    "write by os.open": "import os\nos.write(os.open(payload['written'], os.O_CREAT | os.O_WRONLY), b'x')",
    "write by pathlib": "import pathlib\npathlib.Path(payload['written']).touch()",
    "write by mkdir": "import os\nos.mkdir(payload['written'])",
    "write by link": "import os\nos.link(payload['file'], payload['written'])",
    "write by shelve": "import shelve\nshelve.open(payload['written'])['x'] = 1",
    "write by sqlite": "import sqlite3\nsqlite3.connect(payload['written']).execute('create table t (x)')",
    "write by logging": "import logging\nlogging.FileHandler(payload['written']).close()",
    "write by print": "print('x', file=open(payload['written'], 'w'))",
    "write by the shell": "import os\nos.system('touch ' + payload['written'])",
    "write by spawn": "import os\nos.spawnlp(os.P_WAIT, 'touch', 'touch', payload['written'])",
    "write by fork": (
        "import os\nchild = os.fork()\nif not child:\n    try:\n        open(payload['written'], 'w').close()\n"
        "    finally:\n        os._exit(0)\nos.waitpid(child, 0)"
    ),
    "write by multiprocessing": (
        "import multiprocessing as m\nc = m.get_context('fork')\n"
        "p = c.Process(target=open, args=(payload['written'], 'w'))\np.start()\np.join()"
    ),
    "write by posix_spawn": ("import os\nos.waitpid(os.posix_spawnp('touch', ['touch', payload['written']], {}), 0)"),
    "write by pty": "import pty\npty.spawn(['touch', payload['written']], lambda fd: b'')",
    "write by ctypes": "import ctypes\nctypes.CDLL(None).creat(payload['written'].encode(), 0o600)",
    "write by a thread": (
        "import threading\nt = threading.Thread(target=open, args=(payload['written'], 'w'))\nt.start()\nt.join()"
    ),
    "write at exit": "import atexit\natexit.register(len, '')\nopen(payload['written'], 'w').close()",
    "connect by TCP": "import socket\nsocket.create_connection(('127.0.0.1', payload['port']))",
    "connect by a raw module": "import _socket\n_socket.socket(2, 1).connect(('127.0.0.1', payload['port']))",
    "connect by a unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect(payload['unix'])",
    "connect by http": (
        "import http.client\nhttp.client.HTTPConnection('127.0.0.1', payload['port'], timeout=0.1).connect()"
    ),
    "connect by urllib": (
        "import urllib.request as u\ntry:\n    u.urlopen(f'http://127.0.0.1:{payload[\"port\"]}', timeout=0.1)\n"
        "except TimeoutError:\n    pass"
    ),
    "connect by the shell": (
        "import os\nport = payload['port']\nos.system(f'bash -c \"echo > /dev/tcp/127.0.0.1/{port}\"')"
    ),
    "environment by ctypes": (
        "import ctypes\ngetenv = ctypes.CDLL(None).getenv\ngetenv.restype = ctypes.c_char_p\n"
        "result = getenv(b'CANARY').decode()"
    ),
    "objects of the collector": (
        "import gc\nresult = [o['SECRET'] for o in gc.get_objects() if type(o) is dict and 'SECRET' in o]"
    ),
    "frames of the caller": "import sys\nresult = sys._getframe(1).f_globals['SECRET']",
    "frames by inspect": "import inspect\nresult = inspect.stack()[1].frame.f_globals['SECRET']",
    "frames by a traceback": (
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n"
        "    result = e.__traceback__.tb_frame.f_back.f_globals['SECRET']"
    ),
    "modules loaded": "import sys\nresult = sys.modules[payload['module']].SECRET",
    "subclasses walk": (
        "result = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close']"
        "[0].__init__.__globals__['environ']['CANARY']"
    ),
    "subclasses walk without dots": (
        "walk = getattr(getattr(getattr((), '__class__'), '__base__'), '__subclasses__')()\n"
        "result = [c for c in walk if c.__name__ == '_wrap_close'][0].__init__.__globals__['environ']['CANARY']"
    ),
    "globals of a function": (
        "import json\nresult = json.dumps.__globals__['__builtins__']['__import__']('os').environ['CANARY']"
    ),
    "globals by the builtins": "result = __builtins__['__import__']('os').environ['CANARY']",
    "format walk": "import os\nresult = '{0.environ[CANARY]}'.format(os)",
    "import by __import__": "result = __import__('os').environ['CANARY']",
    "import by importlib": "import importlib\nresult = importlib.import_module('os').environ['CANARY']",
    "import by exec": "exec('import os; result = os.environ[\"CANARY\"]')",
    "import by eval": 'result = eval(\'__import__("os").environ["CANARY"]\')',
    "import of posix": "import posix\nresult = repr(posix.environ)",
    "import by sys.path": "import sys\nsys.path.insert(0, payload['folder'])\nimport planted\nresult = planted.SECRET",
    "unpickling": "import pickle\nresult = pickle.loads(b\"cos\\ngetenv\\n(S'CANARY'\\ntR.\")",
    "code objects": ("result = eval(compile('__import__(\"os\").environ[\"CANARY\"]', 'x', 'eval'), {})"),
    "code object replaced": (
        "def f(): pass\nf.__code__ = compile('__import__(\"os\")', 'x', 'eval')\nresult = f().environ['CANARY']"
    ),
    "type made by hand": "result = type('T', (), {'x': __import__('os').environ['CANARY']})().x",
    "globals()": "result = globals()['__builtins__']['__import__']('os').environ['CANARY']",
    "vars of a module": "import os\nresult = vars(os)['environ']['CANARY']",
    "dict of a module": "import os\nresult = os.__dict__['environ']['CANARY']",
    "module of a module": "import random\nresult = random._os.environ['CANARY']",
    "decorator as a call": "def f(_): return __import__('os').environ['CANARY']\n@f\nclass result: pass",
    "module of asyncio": "import asyncio.base_events as b\nresult = b.os.environ['CANARY']",
    "kill our process": "import os\nos.kill(payload['pid'], 0)\nresult = payload['secret_name']",
    "signal a group": "import os\nos.killpg(os.getpgrp(), 0)\nresult = payload['secret_name']",
}

# What nobody should run without a sandbox, or what only wastes.
OTHER_ACCESS = {
    "environment of pid 1": "result = open('/proc/1/environ').read()",
    "environment of its own worker": "result = open('/proc/self/environ').read()",
    "command line of our process": "result = open(f'/proc/{payload[\"pid\"]}/cmdline').read()",
    "memory of our process": "result = open(f'/proc/{payload[\"pid\"]}/mem', 'rb').read(1)",
    "list of processes": "import os\nresult = os.listdir('/proc')",
    "users": "result = open('/etc/passwd').read()",
    "kernel log": "result = open('/dev/kmsg').read(1)",
    "random device": "result = open('/dev/urandom', 'rb').read(8).hex()",
    "standard input": "import sys\nresult = sys.stdin.read()",
    "raw standard output": "import sys\nsys.stdout.buffer.write(b'forged')",
    "standard output of the worker by number": "import os\nos.write(1, b'forged reply')",
    "descriptor zero": "result = open(0).read()",
    "every descriptor": (
        "import os\nfor number in range(3, 256):\n    try:\n        result = os.read(number, 9)\n"
        "    except OSError:\n        pass"
    ),
    "input": "result = input()",
    "debugger": "breakpoint()",
    "exit": "import os\nos._exit(0)",
    "exit by sys": "import sys\nsys.exit(0)",
    "exit by exception": "raise SystemExit(0)",
    "abort": "import os\nos.abort()",
    "interrupt": "raise KeyboardInterrupt",
    "signal handler": "import signal\nsignal.alarm(1)",
    "ptrace": "import ctypes\nctypes.CDLL(None).ptrace(16, payload['pid'], 0, 0)",
    "null pointer": "import ctypes\nctypes.string_at(0)",
    "shared memory": "from multiprocessing import shared_memory\nshared_memory.SharedMemory('x', True, 9)",
    "namespaces": "import os\nos.unshare(0x10000000)",
    "root directory": "import os\nos.chroot('/tmp')",
    "working directory": "import os\nos.chdir('/proc/self')\nresult = open('environ').read()",
    "permissions": "import os\nos.chmod(payload['file'], 0o777)",
    "deleting": "import os\nos.remove(payload['file'])",
    "renaming": "import os\nos.rename(payload['file'], payload['written'])",
    "truncating": "import os\nos.truncate(payload['file'], 0)",
    "user": "import os\nos.setuid(0)",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "recursion limit": "import sys\nsys.setrecursionlimit(10**9)",
    "digits limit": "import sys\nsys.set_int_max_str_digits(0)\nresult = str(10**100_000)",
    "name server": "import socket\nresult = socket.gethostbyname('localhost')",
    "server": "import socket\nsocket.create_server(('127.0.0.1', 0))",
    "threads": "import threading\nthreading.Thread(target=print).start()",
    "low-level threads": "import _thread\n_thread.start_new_thread(print, ())",
    "executor": "import concurrent.futures as f\nf.ProcessPoolExecutor().submit(print)",
    "entropy of the host": "import os\nresult = os.urandom(8).hex()",
    "identity of the host": "import platform\nresult = platform.node()",
    "uname": "import os\nresult = os.uname().nodename",
    "bytecode": "import types\ntypes.CodeType(0, 0, 0, 0, 0, 0, b'', (), (), (), '', '', 0, b'')",
    "metaclass": "class M(type): pass\nclass A(metaclass=M): pass",
    "mro": "result = int.mro()[1].__subclasses__()",
    "reduce": "result = object().__reduce_ex__(2)",
    "bases of a class": "class A: pass\nresult = A.__bases__[0].__subclasses__()",
    "coroutine frame": "async def f(): pass\nresult = f().cr_frame.f_globals",
    "closure cells": "def f():\n    x = 1\n    return lambda: x\nresult = f().__closure__[0].cell_contents",
    "host objects by name": "result = Monty",
    "host callbacks by name": "result = print_callback('x')",
    "installer": "import pip\npip.main(['install', 'x'])",
    "sandbox's own module": "import pydantic_monty",
    "platform's own modules": "import infra.settings\nresult = infra.settings.Settings()",
    "sleep": "import time\ntime.sleep(3600)",
    "sleep and carry on": (
        "import time\nfor _ in range(10**6):\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass"
    ),
    "sleep in asyncio": "import asyncio\nawait asyncio.sleep(3600)",
    "sleeps at once": "import asyncio\nawait asyncio.gather(*[asyncio.sleep(60) for _ in range(1000)])",
}

EXHAUSTION = {
    "endless loop": "while True: pass",
    "endless loop that catches": (
        "while True:\n    try:\n        while True: pass\n    except BaseException:\n        continue"
    ),
    "endless loop in finally": "try:\n    1 / 0\nfinally:\n    while True: pass",
    "endless loop in a comparison": "class A:\n    def __eq__(self, other):\n        while True: pass\nA() == A()",
    "endless sort key": "def k(x):\n    while True: pass\nsorted([2, 1], key=k)",
    "endless iterator": ("class A:\n    def __iter__(self): return self\n    def __next__(self): return 1\nsum(A())"),
    "endless chain": "import itertools\nresult = list(itertools.count())",
    "endless cycle": "import itertools\nfor _ in itertools.cycle([1]): pass",
    "endless tasks": "async def f():\n    while True:\n        await g()\nasync def g(): pass\nawait f()",
    "endless unknown names": "while True:\n    try:\n        nowhere\n    except NameError:\n        pass",
    "endless questions": "while True:\n    try:\n        open('/x')\n    except OSError:\n        pass",
    "memory by a list": "x = []\nwhile True: x.append('x' * 1000)",
    "memory by doubling": "x = [1]\nwhile True: x += x",
    "memory by a product": "x = [0] * 10**9",
    "memory by text": "x = 'x' * 10**10",
    "memory by bytes": "x = bytes(10**10)",
    "memory by a bytearray": "x = bytearray(10**10)",
    "memory by nesting": "x = []\nwhile True: x = [x, x]",
    "memory by a dict": "x = {}\ni = 0\nwhile True:\n    x[i] = i\n    i += 1",
    "memory by a set": "x = set()\ni = 0\nwhile True:\n    x.add(i)\n    i += 1",
    "memory by range": "x = list(range(10**10))",
    "memory by a comprehension": "x = [[0] * 1000 for _ in range(10**7)]",
    "memory by join": "x = ('x' * 10**6).join(['y'] * 10**6)",
    "memory by replace": "x = ('x' * 10**4).replace('x', 'y' * 10**7)",
    "memory by repeat": "import itertools\nx = list(itertools.repeat(0, 10**10))",
    "memory by permutations": "import itertools\nx = list(itertools.permutations(range(20)))",
    "memory by closures": "f = lambda: 0\nfs = []\nwhile True:\n    fs.append(lambda g=f: g)",
    "memory by classes": "xs = []\nwhile True:\n    class A:\n        x = 1\n    xs.append(A())",
    "memory by an exception": "e = ValueError('x' * 10**10)",
    "memory by a deque": "import collections\nd = collections.deque()\nwhile True: d.append([0] * 1000)",
    "memory by a counter": "import collections\nc = collections.Counter()\nwhile True: c[len(c)] = 1",
    "memory by tasks": "import asyncio\nasync def f(): pass\nx = []\nwhile True: x.append(f())",
    "memory by json": "import json\nx = json.loads('[' + '0,' * 10**7 + '0]')",
    "memory by base64": "import base64\nx = base64.b64encode(b'x' * 10**9)",
    "memory by split": "x = ('x ' * 10**7).split()",
    "memory by format": "x = '{:>9999999999}'.format(1)",
    "memory by percent": "x = '%9999999999d' % 1",
    "memory by an f-string": "n = 10**10\nx = f'{1:>{n}}'",
    "memory by zfill": "x = '1'.zfill(10**10)",
    "memory by center": "x = '1'.center(10**10)",
    "memory by expandtabs": "x = '\\t'.expandtabs(10**10)",
    "memory by translate": "x = ('a' * 10**5).translate({97: 'x' * 10**6})",
    "memory by a regular expression": "import re\nx = re.sub('x', 'y' * 10**7, 'x' * 10**4)",
    "memory by a long pattern": "import re\nre.compile('(?:a{1000}){1000}{1000}')",
    "memory by decimals": "import decimal\nx = decimal.Decimal(1).scaleb(10**9).quantize(decimal.Decimal(1))",
    "integer by power": "x = 10**10**10",
    "integer by shift": "x = 1 << 10**12",
    "integer by pow": "x = pow(7, 10**10)",
    "integer by factorial": "import math\nx = math.factorial(10**9)",
    "integer by multiplication": "x = 3\nwhile True: x *= x",
    "integer by combinations": "import math\nx = math.comb(10**9, 10**8)",
    "integer as text": "x = str(1 << 10**7)",
    "integer from text": "x = int('9' * 10**7)",
    "integer by modular power": "x = pow(3, 1 << 10**6, (1 << 10**6) + 1)",
    "recursion": "def f(): return f()\nf()",
    "recursion by two": "def f(): return g()\ndef g(): return f()\nf()",
    "recursion by repr": "class A:\n    def __repr__(self): return repr(self)\nrepr(A())",
    "recursion by attributes": "class A:\n    def __getattr__(self, n): return getattr(self, n)\nA().x",
    "recursion by comparison": "a = []\na.append(a)\nb = []\nb.append(b)\na == b",
    "recursion by json": "import json\njson.loads('[' * 10**6)",
    "recursion by eval": "s = '1'\nfor _ in range(10**4): s = f'({s})'\neval(s)",
    "recursion by exec": "code = 'exec(code)'\nexec(code)",
    "deep source": "(" * 20_000 + ")" * 20_000,
    "deep minus": "x = " + "-" * 50_000 + "1",
    "deep attributes": "x" + ".x" * 20_000,
    "deep blocks": "".join(" " * depth + "if 1:\n" for depth in range(300)) + " " * 300 + "pass",
    "regular expression that backtracks": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')\nwhile True: pass",
    "regular expression with back references": "import re\nre.match(r'(a*)*\\1$', 'a' * 40 + 'b')\nwhile True: pass",
    "output without end": "while True: print('x' * 1000)",
    "output in one piece": "print('x' * 10**7)",
    "output in small pieces": "while True: print('', end='x')",
    "output to the other stream": "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
    "result too large": "result = 'x' * 10**7",
    "result of many parts": "result = [0] * 10**6",
    "result that shares itself": "result = [1]\nfor _ in range(60): result = [result, result]",
    "result too deep": "result = 0\nfor _ in range(100_000): result = [result]",
    "result that is itself": "result = {}\nresult['a'] = result",
    "result not a number": "result = {'a': [float('nan')]}",
    "result infinite": "result = -float('inf')",
    "result with U+0000": "result = 'a\\x00b'",
    "result with U+0000 as a key": "result = {'\\x00': 1}",
    "result with a lone surrogate": "result = b'\\xed\\xa0\\x80'.decode('utf-8', 'surrogatepass')",
    "result with a lone surrogate from json": "import json\nresult = json.loads('\"\\\\ud800\"')",
    "result with a lone surrogate from chr": "result = chr(0xD800)",
    "result a number too large": "result = 2**64",
    "result a number of many digits": "result = 10**4299",
    "result a function": "result = lambda: 1",
    "result a class": "class A: pass\nresult = A",
    "result an instance": "class A:\n    x = 1\nresult = A()",
    "result a module": "import os\nresult = os",
    "result an exception": "result = ValueError('x')",
    "result a set": "result = {1}",
    "result bytes": "result = b'x'",
    "result an iterator": "result = iter([1])",
    "result keys that are no text": "result = {(1, 2): 3}",
    "error with U+0000": "raise ValueError('\\x00')",
    "error too long": "raise ValueError('x' * 10**7)",
    "error that lies about its time": "raise TimeoutError('feed time limit exceeded: 1s > 1s')",
    "error with a cause without end": (
        "e = ValueError()\nfor _ in range(10**5):\n    n = ValueError()\n    n.__cause__ = e\n    e = n\nraise e"
    ),
}

ATTACKS = [
    *((f"access: {name}", code, DENIED) for name, code in (LEAKS_WITHOUT_A_SANDBOX | OTHER_ACCESS).items()),
    *((f"exhaustion: {name}", code, STOPPED) for name, code in EXHAUSTION.items()),
]


class Canaries:
    """Secrets within reach of this process, and what would show that somebody touched something."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "secret").write_text(SECRET.replace("-", "_"))
        (folder / "planted.py").write_text(f"SECRET = {SECRET!r}")
        (folder / SECRET).touch()
        self.listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
        self.listeners[1].bind(str(folder / "unix"))
        self.listeners[1].listen()
        for listener in self.listeners:
            listener.setblocking(False)
        self.descriptor = os.open(folder / "secret", os.O_RDONLY)
        os.set_inheritable(self.descriptor, True)
        self.payload: dict[str, Any] = {
            "file": str(folder / "secret"),
            "folder": str(folder),
            "written": str(folder / "written"),
            "port": self.listeners[0].getsockname()[1],
            "unix": str(folder / "unix"),
            "descriptor": self.descriptor,
            "pid": os.getpid(),
            "module": __name__,
            "secret_name": "touched",
        }

    def heard(self) -> bool:
        """Whether anybody connected since the last time."""
        heard = False
        for listener in self.listeners:
            try:
                listener.accept()[0].close()
                heard = True
            except BlockingIOError:
                continue
        return heard

    def written(self) -> bool:
        """Whether the file that nobody may write is there; takes it away."""
        found = [path for path in self.folder.glob("written*") if path.exists()]
        for path in found:
            path.rmdir() if path.is_dir() else path.unlink()
        return bool(found)

    def sang(self, seen: str) -> list[str]:
        return [
            name
            for name, sings in (
                ("a secret", SECRET in seen or SECRET.replace("-", "_") in seen or "touched" in seen),
                ("a connection", self.heard()),
                ("a file", self.written()),
            )
            if sings
        ]

    def close(self) -> None:
        os.close(self.descriptor)
        for listener in self.listeners:
            listener.close()


@pytest.fixture(scope="module")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    os.environ["CANARY"] = SECRET
    canaries = Canaries(tmp_path_factory.mktemp("canaries"))
    yield canaries
    canaries.close()
    del os.environ["CANARY"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner(canaries: Canaries) -> AsyncIterator[CodeRunner]:
    runner = CodeRunner(processes_max=1, timeout_seconds_max=30)
    await runner.start()
    yield runner
    await runner.stop()


def is_sandbox(process: psutil.Process) -> bool:
    try:
        return process.name() == "monty"
    except psutil.NoSuchProcess:
        return False


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("code", "codes"), [attack[1:] for attack in ATTACKS], ids=[attack[0] for attack in ATTACKS])
async def test_an_attack_is_refused_and_the_next_run_works(
    runner: CodeRunner, canaries: Canaries, code: str, codes: frozenset[str]
) -> None:
    with pytest.raises(StepFailed) as failed:
        await runner.run(code, canaries.payload, ENDLESS_SECONDS if "timeout" in codes else 0.0)
    error = failed.value
    assert error.code in codes, str(error)[:500]
    assert canaries.sang(f"{error} {error.output} {error.text}") == []
    assert (await runner.run("result = payload['port'] + 1", canaries.payload)).output == {
        "result_json": canaries.payload["port"] + 1
    }
    assert len([child for child in psutil.Process().children() if is_sandbox(child)]) <= 2


@pytest.mark.parametrize("name", LEAKS_WITHOUT_A_SANDBOX)
def test_without_the_sandbox_the_canaries_sing(canaries: Canaries, name: str) -> None:
    names: dict[str, Any] = {"payload": canaries.payload, "result": None, "__name__": "attack"}
    seen = ""
    try:
        exec(textwrap.dedent(LEAKS_WITHOUT_A_SANDBOX[name]), names)  # noqa: S102 - the control.
    except Exception as error:
        seen = str(error)
    assert canaries.sang(f"{seen} {names['result']}")


def test_the_corpus_is_large_enough() -> None:
    assert len({code for _, code, _ in ATTACKS}) == len(ATTACKS) >= 80
