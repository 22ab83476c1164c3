# The first code of a runner: takes two files from the socket at standard input, the runner's own code and the model.
import json, os, socket, sys, types

with socket.socket(fileno=os.dup(0)) as first:
    bundle, model = socket.recv_fds(first, 1, 2)[1]
parts = json.loads(os.pread(bundle, os.fstat(bundle).st_size, 0))
os.close(bundle)
for name, text in parts["modules"].items():
    module = sys.modules["forebay_" + name] = types.ModuleType("forebay_" + name)
    exec(compile(text, name + ".py", "exec"), module.__dict__)
sys.modules["forebay_runner"].main(parts["spec"], model)
