"""Pods put together by chance: mounts, security contexts, descriptors and settings.

A number makes a pod, always the same one, so that what fails can be kept as a case.
"""

from __future__ import annotations

from random import Random

from grit_runtime.proto import cri_pb2
from integration.pods.pod_spec import EmptyDir, HostPath, Security, VolumeMount
from integration.tests.matrix import single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.pods.pod_spec import PodSpec

# On both nodes.
LAY_OUT = "mkdir -p /srv/random/sub/deep /srv/apart; echo x >/srv/random/sub/deep/file"
VOLUMES = (
    HostPath("tree", "/srv/random"),
    HostPath("sub", "/srv/random/sub"),
    HostPath("deep", "/srv/random/sub/deep"),
    HostPath("apart", "/srv/apart"),
    EmptyDir("disk"),
    EmptyDir("memory", in_memory=True),
)
CAPABILITIES = ("CHOWN", "NET_RAW", "SETUID", "SETGID", "MKNOD", "KILL", "SYS_CHROOT")
SECCOMP = (cri_pb2.SecurityProfile.RuntimeDefault, cri_pb2.SecurityProfile.Unconfined)

# What a process can have; {n} is a number by chance, from 1 to 9.
HOLDINGS = (
    "held.append(open('/tmp/file{n}', 'w+')); held[-1].write('x' * {n}); held[-1].flush()",
    "held.append(open('/etc/passwd', 'rb', buffering=0)); held[-1].read({n})",
    "held.append(os.open('/tmp/log{n}', os.O_CREAT | os.O_APPEND | os.O_WRONLY))",
    "held.append(os.open('/tmp', os.O_RDONLY | os.O_DIRECTORY))",
    "held.append(os.open('/etc/passwd', os.O_PATH))",
    "held.append(os.pipe2(os.O_NONBLOCK))",
    "held.append(os.pipe()); os.set_inheritable(held[-1][0], True)",
    "held.append(os.dup(1))",
    "held.append(os.memfd_create('memory{n}'))",
    "held.append(os.eventfd({n}, os.EFD_NONBLOCK))",
    "held.append(select.epoll())",
    "held.append(socket.socketpair())",
    "held.append(socket.socket(2, socket.SOCK_DGRAM)); held[-1].setsockopt(0, 1, 4 * {n})",
    "held.append(socket.create_server(('127.0.0.1', 500{n}))); held[-1].setsockopt(6, 18, 100{n})",
    "held.append(mmap.mmap(-1, 4096 * {n}))",
)
SETTINGS = (
    "os.nice({n})",
    "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    "os.sched_setaffinity(0, {{{n} % 2}})",
    "libc.syscall(251, 1, 0, (2 << 13) | ({n} % 8))",
    "libc.prctl(29, 1000 * {n}, 0, 0, 0)",
    "libc.personality(0x0040000)",
    "open('/proc/self/coredump_filter', 'w').write('0x3{n}')",
    "open('/proc/self/oom_score_adj', 'w').write('1000')",
    "resource.setrlimit(resource.RLIMIT_NOFILE, (500 + {n}, 1000))",
    "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "os.umask({n})",
    "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
    "signal.pthread_sigmask(signal.SIG_BLOCK, {{30 + {n}}})",
    "libc.prctl(41, 1, 0, 0, 0)",
    "libc.prctl(38, 1, 0, 0, 0)",
    "os.chdir('/tmp')",
    "threading.Thread(target=time.sleep, args=(100000,), daemon=True).start()",
)


def pod(number: int) -> PodSpec:
    """The pod of that number."""
    random = Random(number)  # noqa: S311
    places = random.sample(range(10), random.randint(0, 6))
    mounts = tuple(
        VolumeMount(
            random.choice(VOLUMES).name, f"/volumes/{place}", readonly=random.random() < 0.7
        )
        for place in places
    )
    user = random.choice((0, 0, 1000))
    security = Security(
        user=user,
        group=random.choice((None, 3000)) if user else None,
        groups=tuple(random.sample((4000, 5000, 6000), random.randint(0, 2))),
        no_new_privs=random.random() < 0.5,
        readonly_rootfs=False,
        add_capabilities=tuple(random.sample(("NET_ADMIN", "SYS_NICE"), random.randint(0, 1))),
        drop_capabilities=tuple(random.sample(CAPABILITIES, random.randint(0, 3))),
        seccomp=random.choice(SECCOMP),
    )
    code = "import resource\nheld = []\n" + lines(random)
    for _ in range(random.randint(0, 2)):
        code += "if os.fork() == 0:\n" + indented(lines(random)) + "    time.sleep(100000)\n"
    code += "time.sleep(0.2)\nwait()\n"
    return single.pod(
        f"random-{number}",
        code,
        security=security,
        volumes=tuple(v for v in VOLUMES if v.name in {mount.volume for mount in mounts}),
        mounts=mounts,
    )


def lines(random: Random) -> str:
    """Some of what a process can have and be set to, in any order; what it may not, it has not."""
    wanted = random.sample(HOLDINGS, random.randint(0, 6))
    wanted += random.sample(SETTINGS, random.randint(0, 6))
    random.shuffle(wanted)
    text = ""
    for line in wanted:
        text += f"try:\n    {line.format(n=random.randint(1, 9))}\nexcept OSError:\n    pass\n"
    return text


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())
