"""The client's side of SCRAM-SHA-256 with the library scramp, line by line, for clients that bring no SCRAM of their own.

    begin USER PASSWORD     prints the client's first message
    challenge MESSAGE       takes the server's answer, prints the client's last message
    finish MESSAGE          takes the server's proof, prints `proven`

What the library refuses is printed as `refused: ` and its reason.
"""

import importlib.metadata
import sys

import scramp

print("scramp", importlib.metadata.version("scramp"), flush=True)
client = None
for line in sys.stdin:
    word, _, rest = line.rstrip("\n").partition(" ")
    try:
        if word == "begin":
            user, password = rest.split(" ")
            client = scramp.ScramClient(["SCRAM-SHA-256"], user, password)
            print(client.get_client_first(), flush=True)
        elif word == "challenge":
            client.set_server_first(rest)
            print(client.get_client_final(), flush=True)
        elif word == "finish":
            client.set_server_final(rest)
            print("proven", flush=True)
        else:
            raise ValueError(word)
    except scramp.ScramException as refused:
        print("refused:", refused, flush=True)
