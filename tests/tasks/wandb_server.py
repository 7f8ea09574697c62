"""A small stand-in for W&B's server on the loopback: what a run, an upload and a sweep's agent ask of it."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENTITY, PROJECT = "someone", "exemplar-norm"
KEY = "0" * 40


class Server:
    """Runs by id with their configuration and files' lines; a sweep that hands out prepared commands."""

    def __init__(self):
        self.address = ""
        self.runs, self.lines, self.queries = {}, {}, []
        self.artifacts = []
        self.sweep_config, self.proposals, self.handed = None, [], 0

    def answer(self, query, variables):
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = name[1] if name else re.search(r"\{\s*(\w+)", query)[1]
        self.queries.append(name)
        method = getattr(self, f"on_{name}", None)
        return method(variables) if method else {}

    def on_Viewer(self, _):
        teams = {"edges": [{"node": {"name": ENTITY, "id": "1"}}]}
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": teams}
        return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}}

    def on_UpsertBucket(self, variables):
        run = self.runs.setdefault(variables["name"], {})
        run.update({k: v for k, v in variables.items() if v is not None})
        bucket = {
            "id": variables["name"],
            "name": variables["name"],
            "displayName": variables.get("displayName") or variables["name"],
            "description": "",
            "config": variables.get("config") or "{}",
            "sweepName": variables.get("sweep"),
            "historyLineCount": 0,
            "project": {"id": "1", "name": PROJECT, "entity": {"id": "1", "name": ENTITY}},
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def on_CreateRunFiles(self, variables):
        files = [{"name": name, "uploadUrl": f"{self.address}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def on_ArtifactType(self, _):
        return {"project": {"artifact": None}}

    def on_CreateArtifact(self, variables):
        asked = variables["input"]
        kind, name = asked["artifactTypeName"], asked["artifactCollectionName"]
        self.artifacts.append((kind, name))
        # As if the same content were there already: nothing is uploaded.
        found = {
            "id": "1", "digest": asked["digest"], "state": "COMMITTED", "aliases": [],
            "artifactSequence": {"id": "1", "name": name, "latestArtifact": {"id": "1", "versionIndex": 0}},
        }  # fmt: skip
        return {"createArtifact": {"artifact": found}}

    def on_UseArtifact(self, variables):
        return {"useArtifact": {"artifact": {"id": variables["artifactID"]}}}

    def on_RunResumeStatus(self, variables):
        run_id, bucket = variables["name"], None
        if run_id in self.runs:
            files = self.lines.get(run_id, {})
            history, events = (files.get(f"wandb-{name}.jsonl", {}) for name in ("history", "events"))
            bucket = {
                "id": run_id, "name": run_id, "displayName": run_id,
                "historyLineCount": len(history), "eventsLineCount": len(events), "logLineCount": 0,
                "historyTail": json.dumps([history[max(history)]] if history else []),
                "eventsTail": json.dumps([events[max(events)]] if events else []),
                "summaryMetrics": files.get("wandb-summary.json", {}).get(0, "{}"),
                "config": self.runs[run_id].get("config") or "{}", "tags": [], "wandbConfig": '{"t": 1}',
            }  # fmt: skip
        project = {"id": "1", "name": PROJECT, "entity": {"id": "1", "name": ENTITY}}
        return {"model": {**project, "bucket": bucket}}

    def on_UpsertSweep(self, variables):
        self.sweep_config = variables.get("config")
        project = {"id": "1", "name": PROJECT, "entity": {"id": "1", "name": ENTITY}}
        sweep = {"id": "1", "name": "sweep1", "project": project}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def on_SweepWithRuns(self, _):
        sweep = {
            "id": "1", "name": "sweep1", "method": "grid", "state": "RUNNING", "description": "",
            "config": self.sweep_config, "createdAt": "", "heartbeatAt": "", "updatedAt": "",
            "earlyStopJobRunning": False, "controller": None, "scheduler": None, "runs": {"edges": []},
        }  # fmt: skip
        return {"project": {"sweep": sweep}}

    def on_CreateAgent(self, _):
        return {"createAgent": {"agent": {"id": "agent1"}}}

    def on_Heartbeat(self, variables):
        if any(json.loads(variables["runState"]).values()):
            commands = []
        elif self.handed < len(self.proposals):
            args = {name: {"value": value} for name, value in self.proposals[self.handed].items()}
            self.handed += 1
            commands = [{"type": "run", "run_id": f"run{self.handed}", "program": "x", "args": args}]
        else:
            commands = [{"type": "exit"}]
        agent = {"id": "agent1"}
        return {"agentHeartbeat": {"agent": agent, "commands": json.dumps(commands)}}

    def stream(self, run_id, body):
        """Keep the lines of the files that a run streams, at their offsets."""
        files = self.lines.setdefault(run_id, {})
        for name, chunk in (body.get("files") or {}).items():
            lines = files.setdefault(name, {})
            for place, line in enumerate(chunk["content"]):
                lines[chunk["offset"] + place] = line

    def history(self, run_id):
        lines = self.lines[run_id]["wandb-history.jsonl"]
        return [json.loads(lines[place]) for place in sorted(lines)]


@contextmanager
def wandb_server():
    """A server that runs until the block ends."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/graphql":
                asked = json.loads(body)
                try:
                    self.reply({"data": state.answer(asked["query"], asked.get("variables") or {})})
                except Exception as error:  # without an answer the client would ask for ever
                    self.reply({"errors": [{"message": repr(error)}]}, status=400)
                return
            found = re.search(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
            if found:
                state.stream(found[1], json.loads(body))
            self.reply({})

        def do_GET(self):
            self.reply({})

        def do_PUT(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.reply({})

        def reply(self, content, status=200):
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            """Say nothing."""

    class Listener(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            """Say nothing of clients that went away."""

    server = Listener(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(server, home):
    """Environment of a process that takes the server for W&B's."""
    return {
        "WANDB_BASE_URL": server.address,
        "WANDB_API_KEY": KEY,
        "WANDB_ENTITY": ENTITY,
        "WANDB_CONFIG_DIR": str(home),
        "WANDB_CACHE_DIR": str(home),
        "WANDB_DATA_DIR": str(home),
        "WANDB_ERROR_REPORTING": "false",
        "HOME": str(home),
        "NO_PROXY": "127.0.0.1",
    }
