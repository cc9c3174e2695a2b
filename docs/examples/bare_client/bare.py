"""A client of pyzmq and msgpack alone, written from this page: prints what comes, and announces a run."""

import struct
import sys
import time

import msgpack
import zmq

VERSION = 1
CODES = {"f": {4: "f", 8: "d"}, "i": {1: "b", 2: "h", 4: "i", 8: "q"}, "u": {1: "B", 2: "H", 4: "I", 8: "Q"}}


def decoded(topic, payload):
    """Turn the two frames of a message into a dict, its arrays into (shape, flat tuple of numbers)."""
    message = msgpack.unpackb(payload)
    if message["v"] != VERSION:
        raise ValueError(f"expected version {VERSION} of the wire, got {message['v']}")
    if message["topic"] != topic.decode():
        raise ValueError(f"expected a message of {topic.decode()}, got one of {message['topic']}")
    return {name: plain(value) for name, value in message.items()}


def plain(value):
    """Turn an array into its shape and its numbers; leave everything else as it is."""
    if not (isinstance(value, dict) and value.keys() == {"dtype", "shape", "data"}):
        return value
    order, kind, size = value["dtype"][0], value["dtype"][1], int(value["dtype"][2:])
    code = CODES[kind][size]
    numbers = struct.unpack(("<" if order in "<|" else ">") + code * (len(value["data"]) // size), value["data"])
    return value["shape"], numbers


def ask(dealer, number, request, **fields):
    """Ask the daemon something; return its answer."""
    dealer.send(msgpack.packb({"v": VERSION, "id": number, "request": request, **fields}))
    answer = msgpack.unpackb(dealer.recv())
    if not answer["ok"]:
        raise ValueError(answer["error"])
    return answer


def main(stream, requests, count):
    """Announce a run and print `count` messages, those that were missed among them."""
    context = zmq.Context()
    sub, dealer = context.socket(zmq.SUB), context.socket(zmq.DEALER)
    sub.subscribe(b"")
    sub.connect(stream)
    dealer.connect(requests)
    told = ask(dealer, 1, "ping")
    print("daemon's clock less mine:", told["t_wall"] - time.time())
    ask(dealer, 2, "event", kind="run_start", run=1)
    last = {}  # by session and topic, the number of the latest message
    while count > 0:
        topic, payload = sub.recv_multipart()
        message = decoded(topic, payload)
        seq, place = message["seq"], (message["session"], message["topic"])
        payloads = [payload]
        if seq is not None:  # heartbeats have none
            missed = last.get(place, seq - 1) + 1
            while missed < seq:
                answer = ask(dealer, 3, "replay", topic=message["topic"], since_seq=missed)
                payloads[-1:-1] = answer["messages"][: seq - missed]
                missed = answer["next_seq"]
            last[place] = seq
        for one in payloads:
            print(decoded(topic, one))
            count -= 1
    context.destroy(linger=0)


if __name__ == "__main__":
    main("tcp://127.0.0.1:5591", "tcp://127.0.0.1:5592", int(sys.argv[1]))
