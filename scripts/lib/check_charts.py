"""Renders every value set of every chart, and says what is wrong with the outcome. See scripts/charts."""

import argparse
import copy
import json
import pathlib
import re
import subprocess
import sys

import jsonschema
import kubernetes_validate
import yaml

PORT = 9647
# What the restricted Pod Security Standard asks for, and a read-only root besides.
HARDENED = {
    "runAsNonRoot": True,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
# Where the sinks' other ends usually listen.
SINK_PORTS = {"rabbitmq": {5671, 5672}, "nats": {4222}, "kafka": {9092}, "http": {80, 443}, "eventbridge": {80, 443}}
# Values that must be refused, set beside an otherwise sound set, and a part of what is said then.
REFUSED = [
    ("outrigger", ["replicas=3"], "replicas"),
    ("outrigger", ["settings.OUTRIGGER_DATABASE_URL=postgresql://u:p@h/d"], "OUTRIGGER_DATABASE_URL"),
    ("outrigger", ["settings.outrigger_sink=stdout"], "outrigger_sink"),
    ("outrigger", ["settings.OUTRIGGER_EVENT_SOURCE=null"], "OUTRIGGER_EVENT_SOURCE is required"),
    ("outrigger", ["secrets.OUTRIGGER_DATABASE_URL=null"], "no database"),
    ("outrigger", ["secrets.OUTRIGGER_DATABASE_URL.key=null"], "key"),
    ("outrigger", ["secrets.OUTRIGGER_RABBITMQ_URL=null"], "with the sink rabbitmq"),
    ("outrigger", ["settings.OUTRIGGER_SINK=nats"], "secrets.OUTRIGGER_NATS_URL"),
    ("outrigger", ["settings.OUTRIGGER_SINK=http"], "secrets.OUTRIGGER_HTTP_URL"),
    ("outrigger", ["settings.OUTRIGGER_SINK=kafka"], "settings.OUTRIGGER_KAFKA_BROKERS"),
    ("outrigger", ["networkPolicy.extraEgres[0].to=x"], "extraEgres"),
    ("outrigger", ["shutdownTimeoutSeconds=30"], "must be longer than shutdownTimeoutSeconds"),
    ("outrigger", ["settings.OUTRIGGER_RELAY_SHUTDOWN_TIMEOUT=5s"], "set shutdownTimeoutSeconds instead"),
    ("outrigger", ["settings.OUTRIGGER_ADMIN_LISTEN=0.0.0.0:8080"], "must end in :9647"),
    ("outrigger", ["settings.PGUSER=me", "secrets.PGUSER.name=n", "secrets.PGUSER.key=k"], "both settings and secrets"),
    ("outrigger", ["mounts[0].name=a", "mounts[0].path=/a"], "mounts"),
    ("outrigger", ["image.digest=abc"], "digest"),
    ("outrigger", ["migrate.enabled=true"], "migrate.secrets is empty"),
    ("outrigger", ["podMonitor.intervall=15s"], "intervall"),
    ("examples/orders", ["outrigger.setings.A=b"], "setings"),
    ("examples/orders", ["outrigger.shutdownTimeoutSeconds=30"], "must be longer than outrigger.shutdownTimeoutSeconds"),
    ("examples/orders", ["outrigger.settings.OUTRIGGER_SINK=nats"], "outrigger.secrets.OUTRIGGER_NATS_URL"),
    ("examples/orders", ["outrigger.settings.AMQP_URL=amqp://u:p@h"], "AMQP_URL"),
    ("examples/orders", ["outrigger.settings.OUTRIGGER_EVENT_SOURCE=null"], "outrigger.settings.OUTRIGGER_EVENT_SOURCE"),
]


def main():
    parser = argparse.ArgumentParser()
    for name in ("charts", "rendered", "root", "crds"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--helm", action="append", required=True)
    parser.add_argument("--kubernetes", nargs="+", required=True)
    args = parser.parse_args()

    problems = []
    documents = {}
    for chart in ("outrigger", "examples/orders"):
        folder = args.charts / chart
        run([args.helm[0], "dependency", "update", "--skip-refresh", folder])
        sets = sorted((folder / "ci").glob("*-values.yaml"))
        assert sets, f"{chart} has no value sets"
        for values in sets:
            name = f"{chart.replace('/', '-')}-{values.name.removesuffix('-values.yaml')}"
            texts = [render(helm, folder, values) for helm in args.helm]
            if any(canonical(text) != canonical(texts[0]) for text in texts):
                problems.append(f"{name}: the versions of Helm render it differently")
            args.rendered.mkdir(parents=True, exist_ok=True)
            (args.rendered / f"{name}.yaml").write_text(texts[-1])
            documents[name] = parse(texts[-1])
    for file in sorted((args.charts / "plain").glob("*.yaml")):
        documents[f"plain-{file.stem}"] = parse(file.read_text())

    for name, found in documents.items():
        problems += [f"{name}: {text}" for text in judge(found) + validate(found, args.kubernetes, args.crds)]
    problems += refusals(args.charts, args.helm)
    problems += agreement(args.root, documents)
    problems += blind_spots(documents, args.kubernetes, args.crds)
    if problems:
        sys.exit("\n".join(problems))
    print(
        f"{len(documents)} sets of manifests, {sum(map(len, documents.values()))} objects; Helm "
        f"{', '.join(run([helm, 'version', '--template', '{{.Version}}']) for helm in args.helm)}; "
        f"Kubernetes {', '.join(args.kubernetes)}; {len(REFUSED)} bad values refused"
    )


def run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def render(helm, folder, values):
    """Lints, then renders as for an install into the namespace `shop`."""
    run([helm, "lint", "--strict", "--quiet", folder, "--values", values])
    return run([helm, "template", "orders", folder, "--namespace", "shop", "--values", values, "--kube-version", "1.33.0"])


def parse(text):
    return [document for document in yaml.safe_load_all(text) if document]


def canonical(text):
    """Independent of the order of objects, which Helm 3 and 4 choose differently."""
    return sorted(json.dumps(document, sort_keys=True) for document in parse(text))


def pods(documents):
    """Each pod template as kind, labels, spec."""
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            template = spec["template"]
            yield document["kind"], template.get("metadata", {}).get("labels", {}), template["spec"]


def judge(documents):
    """What breaks a promise, as text."""
    problems = []
    for document in documents:
        if document["kind"] in ("ConfigMap", "Secret"):
            problems.append(f"{document['kind']}: settings are in the pod and secrets are the user's own")
    found = 0
    for kind, _, spec in pods(documents):
        def say(text):
            problems.append(f"{kind}: {text}")

        sidecar = next((c for c in spec.get("initContainers", []) if c["name"] == "outrigger"), None)
        container = sidecar or next((c for c in spec["containers"] if c["name"] == "outrigger"), None)
        if container is None:
            say("no relay in it")
            continue
        found += 1
        if spec.get("enableServiceLinks") is not False:
            say("enableServiceLinks is not false")
        if spec.get("automountServiceAccountToken") is not False:
            say("a token is mounted")
        judge_container(container, spec, say)
        if container.get("args") == ["migrate"]:
            continue
        judge_run(container, spec, sidecar is not None, say)
    if not found and any(d["kind"] in ("Deployment", "Job") for d in documents):
        problems.append("no relay at all")
    return problems + judge_selectors(documents) + judge_ways_out(documents)


def judge_container(container, spec, say):
    context = container.get("securityContext", {})
    for name, wanted in HARDENED.items():
        if context.get(name) != wanted:
            say(f"securityContext.{name} is {context.get(name)}")
    if context.get("runAsUser") == 0 or context.get("privileged"):
        say("it runs as root or privileged")
    if not re.search(r"(:[0-9]+\.[0-9]+\.[0-9]+|@sha256:[0-9a-f]{64})$", container["image"]):
        say(f"the image {container['image']} has neither a version nor a digest")
    if "memory" not in container.get("resources", {}).get("limits", {}):
        say("no memory limit")
    for entry in container["env"]:
        value = entry.get("value", "")
        if not isinstance(value, str) or re.fullmatch(r"[0-9.]+e\+[0-9]+", value):
            say(f"{entry['name']} is {value!r}")
        if re.search(r"://[^/]*:[^/]*@", str(value)):
            say(f"{entry['name']} has a password in it")
    names = [entry["name"] for entry in container["env"]]
    if len(names) != len(set(names)):
        say("a variable is set twice")
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for mount in container.get("volumeMounts", []):
        volume = volumes.get(mount["name"], {})
        if mount.get("readOnly") is not True:
            say(f"{mount['name']} is mounted for writing")
        if "secret" in volume:
            if volume["secret"].get("defaultMode") != 0o440:
                say(f"{mount['name']} is readable for everybody")
            if "fsGroup" not in spec.get("securityContext", {}):
                say(f"no fsGroup: {mount['name']} is readable for root only")
        elif "configMap" not in volume:
            say(f"there is no volume {mount['name']}")


def judge_run(container, spec, sidecar, say):
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    drain = re.fullmatch(r"(\d+)s", env.get("OUTRIGGER_RELAY_SHUTDOWN_TIMEOUT") or "")
    grace = spec.get("terminationGracePeriodSeconds", 30)
    if not drain or int(drain[1]) >= grace:
        say(f"the drain of {drain and drain[0]} is not shorter than the grace period of {grace}s")
    if "OUTRIGGER_EVENT_SOURCE" not in env:
        say("no event source")
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    listen = env.get("OUTRIGGER_ADMIN_LISTEN") or f"0.0.0.0:{PORT}"
    if not listen.endswith(f":{ports.get('outrigger')}"):
        say(f"the port is {ports.get('outrigger')}, but the relay listens on {listen}")
    for probe in ("startupProbe", "livenessProbe"):
        # Anything that looks at the broker would restart relays while it is away, or keep the service from starting.
        if container.get(probe, {}).get("httpGet") != {"path": "/livez", "port": "outrigger"}:
            say(f"{probe} does not ask /livez")
    if not sidecar:
        if container.get("readinessProbe", {}).get("httpGet") != {"path": "/readyz", "port": "outrigger"}:
            say("readinessProbe does not ask /readyz")
        return
    if container.get("restartPolicy") != "Always":
        say("restartPolicy is not Always: not a sidecar")
    if "readinessProbe" in container:
        say("a readiness probe would take the service out of rotation")
    if spec["initContainers"][-1]["name"] != "outrigger":
        say("the sidecar is not the last init container")


def judge_selectors(documents):
    """Selectors find the relay's pods, and not those of a migration."""
    problems = []
    selectors = []
    for document in documents:
        spec = document.get("spec", {})
        selector = spec.get("podSelector") if document["kind"] == "NetworkPolicy" else spec.get("selector")
        if selector:
            selectors.append((document["kind"], selector["matchLabels"]))
    for kind, labels, _ in pods(documents):
        for owner, wanted in selectors:
            finds = wanted.items() <= labels.items()
            if finds != (kind == "Deployment"):
                problems.append(f"{owner}: its selector {wanted} {'finds' if finds else 'misses'} the pod of the {kind}")
    return problems


def judge_ways_out(documents):
    """A policy lets the relay reach a name server, the database and what its sink publishes to."""
    problems = []
    for policy in (document for document in documents if document["kind"] == "NetworkPolicy"):
        rules = policy["spec"]["egress"]
        ports = {port["port"] for rule in rules for port in rule.get("ports", [])}
        for kind, _, spec in pods(documents):
            if kind != "Deployment":
                continue
            env = {entry["name"]: entry.get("value") for entry in spec["containers"][0]["env"]}
            sink = env.get("OUTRIGGER_SINK") or "rabbitmq"
            for what, wanted in (("a name server", {53}), ("the database", {5432}), (sink, SINK_PORTS[sink])):
                if not wanted & ports:
                    problems.append(f"NetworkPolicy: no way to {what}: {sorted(ports)}")
    return problems


def validate(documents, versions, crds):
    problems = []
    for document in documents:
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            schema = definition(crds, document["kind"])
            errors = jsonschema.Draft7Validator(schema).iter_errors(document)
            problems += [f"{document['kind']}: {error.json_path}: {error.message}" for error in errors]
            continue
        for version in versions:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{document['kind']}, Kubernetes {version}: {error.message}")
    return problems


def definition(crds, kind, cache={}):
    if kind not in cache:
        text = (crds / f"monitoring.coreos.com_{kind.lower()}s.yaml").read_text()
        cache[kind] = strict(yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
        # A definition does not repeat what every object has.
        cache[kind]["properties"]["metadata"] = {"type": "object"}
    return cache[kind]


def strict(schema):
    """Refuses fields that are not defined, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: strict(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return schema


def refusals(charts, helms):
    problems = []
    for chart, settings, expected in REFUSED:
        values = next((charts / chart / "ci").glob("minimal-values.yaml"), None)
        for helm in helms:
            command = [helm, "template", "orders", charts / chart, "--kube-version", "1.33.0"]
            command += ["--values", values] if values else []
            for setting in settings:
                command += ["--set", setting]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode == 0 or expected not in done.stderr:
                said = done.stderr.strip() or "nothing"
                problems.append(f"{chart} {settings}: should be refused with `{expected}`, but: {said}")
    return problems


def agreement(root, documents):
    """Versions, names of settings, and what both charts define, agree with each other and with the binary."""
    problems = []
    read = lambda path: (root / path).read_text()
    version = re.search(r'^version = "(.*)"', read("Cargo.toml"), re.M)[1]
    for chart in ("outrigger", "outrigger-sidecar"):
        if yaml.safe_load(read(f"charts/{chart}/Chart.yaml"))["appVersion"] != version:
            problems.append(f"{chart}: appVersion is not {version}, the binary's version")
    if yaml.safe_load(read("charts/outrigger-sidecar/values.yaml"))["image"]["tag"] != version:
        problems.append(f"outrigger-sidecar: image.tag is not {version}, the binary's version")

    reference = read("docs/configuration.md")
    known = set(re.findall(r"^\| `(OUTRIGGER_[A-Z_]+)`", reference, re.M))
    secret = set(re.findall(r"^\| `(OUTRIGGER_[A-Z_]+)`.*\*Secret\.\*", reference, re.M)) | {"DATABASE_URL", "PGPASSWORD"}
    assert len(known) > 30 and len(secret) > 4, "the reference of settings is not what this expects"
    for name, found in documents.items():
        for _, _, spec in pods(found):
            for container in spec.get("initContainers", []) + spec["containers"]:
                for entry in container.get("env", []):
                    bare = entry["name"].removesuffix("_FILE")
                    variable = bare if bare in secret else entry["name"]
                    if variable.startswith("OUTRIGGER_") and variable not in known:
                        problems.append(f"{name}: there is no setting {variable}")

    schemas = {c: json.loads(read(f"charts/{c}/values.schema.json")) for c in ("outrigger", "outrigger-sidecar")}
    for name, part in schemas["outrigger-sidecar"]["properties"].items():
        if schemas["outrigger"]["properties"][name] != part:
            problems.append(f"the schemas of the charts differ in `{name}`")
        names = part.get("propertyNames")
        if name != "settings":
            continue
        for variable in sorted(known | secret):
            refused = bool(list(jsonschema.Draft7Validator(names).iter_errors(variable)))
            if refused != (variable in secret):
                problems.append(f"the schemas {'refuse' if refused else 'allow'} {variable} in `settings`")
    values = {c: yaml.safe_load(read(f"charts/{c}/values.yaml")) for c in ("outrigger", "outrigger-sidecar")}
    if values["outrigger"]["securityContext"] != values["outrigger-sidecar"]["securityContext"]:
        problems.append("the security contexts of the charts differ")

    # The plain manifests are what the charts make, but for names.
    for plain, chart in (("plain-standalone", "outrigger-minimal"), ("plain-sidecar", "examples-orders-defaults")):
        relays = []
        for name in (plain, chart):
            spec = next(spec for kind, _, spec in pods(documents[name]) if kind == "Deployment")
            relay = next(c for c in spec.get("initContainers", []) + spec["containers"] if c["name"] == "outrigger")
            relays.append({**relay, "env": sorted(entry["name"] for entry in relay["env"])})
        if relays[0] != relays[1]:
            problems.append(f"{plain} and {chart} run different containers: {relays[0]} {relays[1]}")
    return problems


def blind_spots(documents, versions, crds):
    """Breaks sound manifests, one thing at a time: each must be noticed."""
    relay = lambda spec: next(c for c in spec.get("initContainers", []) + spec["containers"] if c["name"] == "outrigger")
    breaks = [
        lambda spec: relay(spec)["securityContext"].pop("readOnlyRootFilesystem"),
        lambda spec: relay(spec)["securityContext"].pop("runAsNonRoot"),
        lambda spec: relay(spec)["securityContext"].update(runAsUser=0),
        lambda spec: relay(spec)["securityContext"]["capabilities"].update(add=["NET_RAW"]),
        lambda spec: relay(spec)["securityContext"].update(seccompProfile={"type": "Unconfined"}),
        lambda spec: spec.pop("enableServiceLinks"),
        lambda spec: spec.pop("automountServiceAccountToken"),
        lambda spec: spec.update(terminationGracePeriodSeconds=5),
        lambda spec: spec.update(terminationGracePeriodSecond=60),
        lambda spec: relay(spec).update(image="outrigger:latest"),
        lambda spec: relay(spec)["livenessProbe"]["httpGet"].update(path="/readyz"),
        lambda spec: relay(spec)["ports"][0].update(containerPort=1234),
        lambda spec: relay(spec)["env"].append({"name": "A", "value": "amqp://me:secret@host"}),
        lambda spec: relay(spec)["env"].append({"name": "A", "value": 1000000}),
        lambda spec: relay(spec).update(volumeMounts=[{"name": "gone", "mountPath": "/a", "readOnly": True}]),
    ]
    problems = []
    for name in ("outrigger-minimal", "examples-orders-defaults"):
        for number, spoil in enumerate(breaks):
            spoilt = copy.deepcopy(documents[name])
            spoil(next(spec for kind, _, spec in pods(spoilt) if kind == "Deployment"))
            if not judge(spoilt) and not validate(spoilt, versions[:1], crds):
                problems.append(f"this check is blind: it does not notice break {number} of {name}")
    for name in ("outrigger-everything", "outrigger-nats", "outrigger-kafka", "outrigger-http", "outrigger-eventbridge"):
        for number in range(2):
            spoilt = copy.deepcopy(documents[name])
            policy = next(document for document in spoilt if document["kind"] == "NetworkPolicy")
            policy["spec"]["egress"] = [policy["spec"]["egress"][number]]
            if not judge_ways_out(spoilt):
                problems.append(f"this check is blind: {name} goes out by rule {number} alone")
    monitors = copy.deepcopy(documents["outrigger-everything"])
    for document in monitors:
        if document["kind"] in ("PodMonitor", "PrometheusRule"):
            document["spec"]["misspelled"] = 1
    if len(validate(monitors, [], crds)) != 2:
        problems.append("this check is blind: it does not notice a misspelled field of a PodMonitor or PrometheusRule")
    return problems


main()
