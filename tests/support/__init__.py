"""The test kit. Import its modules as `tests_support.<module>`.

tests/conftest.py makes that name known, in a checkout of any name and in every xdist worker; for mypy, `scripts/link`
makes `.types/tests_support`.

    upstream    FakeUpstream: a scripted provider made of bytes, over real sockets
    answers     the bytes of well-formed answers: JSON, SSE, chat completions
    clock       FakeClock: time that only moves when told
    downstream  FakeDownstream: a client without a socket
    calls       FakeEndpoint: a provider without a socket, fed with raw bytes
    caller      Caller and Recorder: one HttpEndpoint, its calls, and a receiver that checks the order of the seam
    raw         raw HTTP/1.1 over a socket: what no well-behaved client sends, and answers byte by byte
    traffic     the recorded traffic of ../shared/data, and an independent reading of streams
    relay       Relay: the real engine between FakeDownstream and FakeEndpoints, on a FakeClock
    heard       requests as a provider heard them directly and through the gateway, compared
    redis       RedisServer, a real one, and RedisProxy: what can happen on the way to it
    process     gateway_process: the real command, for signals, workers and crashes
    gateway     running_gateway: the data half in this process, and configs for it
    admin       running_admin: the admin listener beside such a gateway
    leaks       tasks and file descriptors before and after
"""
