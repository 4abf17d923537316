"""The VMM child: what only it runs, from its fork to the start of the guest."""
