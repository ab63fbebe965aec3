"""
The console command.

It has a package of its own because importing `transformers_owl` imports torch, for which nobody waits who asks for help
or has mistyped a name. Its modules import what they need inside the commands.
"""
