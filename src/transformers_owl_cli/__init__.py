"""
The console command.

It is a separate package because importing `transformers_owl` imports torch, which takes too long for a help text or a
mistyped name. Its modules import what they need inside the commands.
"""
