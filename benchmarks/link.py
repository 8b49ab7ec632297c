"""A link between two network namespaces that delays every packet.

    python -m benchmarks.link NAMESPACE NAMESPACE NUMBER DELAY

NAMESPACE is a file such as /proc/PID/ns/net, NUMBER becomes a part of the two addresses (see `address`), DELAY is in
seconds, each way. It does what `tc netem` does with a pair of virtual interfaces; most kernels of containers and small
machines lack that queue, and have tunnels. The tunnels are gone when this process ends.
"""

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress

ADDRESSES = "10.99.0.0/16"  # of all links; they exist in the benchmark's own namespaces only
TUN = "/dev/net/tun"
CLONE_NEWNET = 0x40000000  # <linux/sched.h>
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # <linux/if_tun.h>
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
# With these offloads a "packet" is up to 64 KiB of a TCP stream, as for a real network card, after 10 bytes of header.
PACKET_BYTES = 65536 + 10
MTU_BYTES = 1500
QUEUE_PACKETS = 10_000
BURST_PACKETS = 64  # read from one end before the other end has its turn


def address(number: int, end: int) -> str:
    """The IPv4 address of an end, 0 or 1, of a link."""
    return f"10.99.{number}.{end + 1}"


def enter(namespace: int) -> None:
    """Move this thread into a network namespace, an open file."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def main() -> None:
    *namespaces, number, delay = sys.argv[1:]
    ends = [_open_end(namespace, int(number), end) for end, namespace in enumerate(namespaces)]
    print("ready", flush=True)
    carry(ends, float(delay))


def carry(ends: list[int], delay: float) -> None:
    """Pass on the packets between the ends, `delay` seconds later and in order."""
    waiting: list[deque[tuple[float, bytes]]] = [deque(), deque()]
    while True:
        due = [packets[0][0] for packets in waiting if packets]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        readable, _, _ = select.select(ends, [], [], timeout)
        for end in readable:
            packets, at = waiting[ends.index(end)], time.monotonic() + delay
            packets.extend((at, packet) for packet in _arrived(end))
        now = time.monotonic()
        for packets, target in zip(waiting, reversed(ends), strict=True):
            while packets and packets[0][0] <= now:
                os.write(target, packets.popleft()[1])


def _arrived(end: int) -> list[bytes]:
    packets = []
    with suppress(BlockingIOError):
        while len(packets) < BURST_PACKETS:
            packets.append(os.read(end, PACKET_BYTES))
    return packets


def _open_end(namespace: str, number: int, end: int) -> int:
    """Create a tunnel in a namespace, with its address."""
    file = os.open(namespace, os.O_RDONLY)
    enter(file)
    os.close(file)
    name = f"bench{number}"
    tunnel = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tunnel, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(tunnel, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    for command in (
        f"ip address add {address(number, end)}/30 dev {name}",
        f"ip link set {name} mtu {MTU_BYTES} txqueuelen {QUEUE_PACKETS} up",
    ):
        subprocess.run(command.split(), check=True)
    return tunnel


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
