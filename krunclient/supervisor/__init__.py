"""The process that was exec'd: it claims, forks its children, watches them, and ends truly.

It never loads libkrun.

    run        the claims, the forks, and what each process does then
    children   forks one, with its pipes
    claims     LOCAL_PORT, for as long as this process lives
    overlay    the overlay directory, for as long as one of the two processes lives
    memory     argv and environment, hidden from /proc
    loop       waits for descriptors and timers
    watch      the life cycle of the VMM, by its handlers
    notifications  the calls that a child's filter stops, and their answers:
    sockets    those of the VMM, by the network policy
    passt      those of passt, by the same, and its life
    mappedport the socket that listens on LOCAL_PORT, for both
    layer      how much the guest has written to memory, which is lost
    readiness  whether the app has started, and whether the port accepts
    stalls     sends that a client holds up: given more room, and released at a stop
    tcptable   the host's TCP sockets, for the two above
    announce   writes events to the log and tells a service manager
    libkrunlog libkrun's log, read for what it alone tells
    verdict    how the VMM ended, as krunclient's exit status
"""
