"""The process that was exec'd: it claims, forks the VMM, watches it, and ends with a true status.

It never loads libkrun.

    run        the claims, the fork, and what each process does then
    claims     LOCAL_PORT, for as long as this process lives
    overlay    the overlay directory, for as long as one of the two processes lives
    memory     argv and environment, hidden from /proc
    loop       waits for descriptors and timers
    watch      the life cycle of the VMM, by its handlers
    sockets    answers the VMM's calls of bind, connect and listen
    layer      how much the guest has written to memory, which is lost
    readiness  whether the app has started, and whether the port accepts
    stalls     sends that a client holds up: given more room, and released at a stop
    tcptable   the host's TCP sockets, for the two above
    announce   writes events to the log and tells a service manager
    libkrunlog libkrun's log, read for what it alone tells
    verdict    how the VMM ended, as krunclient's exit status
"""
