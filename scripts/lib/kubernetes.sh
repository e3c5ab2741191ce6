# shellcheck shell=bash
# A Kubernetes of one node for a while: built from its published source, run in namespaces of this process.
#
# It is Kubernetes itself (API server, controllers, scheduler, kubelet) with Debian's etcd, containerd and runc. What it
# lacks: name resolution and Services, since nothing here needs them, and enforcement of network policies.
#
# Needs common.sh and servers.sh, root, and namespaces of network, mounts and processes to itself: `unshare`.

KUBERNETES_VERSION=v1.34.4
KUBERNETES=$ROOT/.cache/tools/kubernetes-$KUBERNETES_VERSION

# Where pods find the servers of this machine.
NODE_ADDRESS=10.99.0.1

# kubernetes_packages: what Debian calls the rest of it.
kubernetes_packages() {
    local program
    for program in buildah runc containerd etcd debootstrap iproute2:ip openssl curl; do
        type -P "${program#*:}" >/dev/null || printf '%s\n' "${program%:*}" | sed 's/^etcd$/etcd-server/'
    done
    [[ -x /usr/lib/cni/bridge ]] || printf 'containernetworking-plugins\n'
}

# build_kubernetes: its programs, into .cache/tools.
build_kubernetes() {
    [[ ! -d $KUBERNETES ]] || return 0
    type -P go >/dev/null || die "Go is needed to build Kubernetes (package \`golang\`, or https://go.dev/dl)"
    say "building Kubernetes $KUBERNETES_VERSION into .cache/tools (once; about ten minutes)"
    local source new=$KUBERNETES.new.$$ numbers version=k8s.io/component-base/version
    source=$(cd / && go mod download -json "k8s.io/kubernetes@$KUBERNETES_VERSION" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
    [[ -d $source ]] || die "Kubernetes $KUBERNETES_VERSION could not be fetched from the Go module proxy"
    rm -rf -- "$new"
    mkdir -p "$new/source"
    # Its parts live in its own tree and are published as modules of version 0 beside it.
    sed -e 's/^module .*/module cluster/' -e "s,\./staging/src/k8s.io/\(.*\),k8s.io/\1 v0${KUBERNETES_VERSION#v1}," \
        "$source/go.mod" >"$new/source/go.mod"
    cat "$source/go.sum" >"$new/source/go.sum"
    IFS=. read -ra numbers <<<"${KUBERNETES_VERSION#v}"
    (
        cd "$new/source"
        go mod edit -require="k8s.io/kubernetes@$KUBERNETES_VERSION"
        CGO_ENABLED=0 go build -mod=mod -trimpath -o "$new/" -ldflags="-s -w -X $version.gitVersion=$KUBERNETES_VERSION
            -X $version.gitMajor=${numbers[0]} -X $version.gitMinor=${numbers[1]} -X $version.gitTreeState=clean" \
            k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubelet,kubectl}
    ) || die 'Kubernetes could not be built; are the Go module proxy and 5 GB of disk at hand?'
    rm -rf -- "$new/source"
    mv -T -- "$new" "$KUBERNETES"
}

# start_kubernetes: returns when the node is ready; sets KUBECONFIG, and CONTAINERD for ctr.
start_kubernetes() {
    local folder=$WORK/kubernetes token
    PATH=$KUBERNETES:$PATH
    mkdir -p "$folder/cni" "$folder/sysctl"
    open_network

    # Nothing reaches this network from outside, so the API's certificate need not be looked at.
    token=$(secret)
    openssl genrsa -out "$folder/accounts.key" 2048 2>/dev/null
    printf '%s,admin,admin,system:masters\n' "$token" >"$folder/tokens"
    export KUBECONFIG=$folder/kubeconfig
    cat >"$KUBECONFIG" <<YAML
apiVersion: v1
kind: Config
clusters: [{ name: here, cluster: { server: "https://$NODE_ADDRESS:6443", insecure-skip-tls-verify: true } }]
users: [{ name: admin, user: { token: $token } }]
contexts: [{ name: here, context: { cluster: here, user: admin } }]
current-context: here
YAML
    start etcd KILL "$folder/etcd.log" etcd --data-dir "$folder/etcd" --unsafe-no-fsync \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380
    start kube-apiserver KILL "$folder/apiserver.log" kube-apiserver --etcd-servers http://127.0.0.1:2379 \
        --advertise-address "$NODE_ADDRESS" --bind-address "$NODE_ADDRESS" --cert-dir "$folder/apiserver" \
        --kubelet-preferred-address-types InternalIP \
        --token-auth-file "$folder/tokens" --authorization-mode Node,RBAC --service-cluster-ip-range 10.96.0.0/16 \
        --service-account-issuer https://kubernetes.default.svc \
        --service-account-key-file "$folder/accounts.key" --service-account-signing-key-file "$folder/accounts.key"
    wait_until 60 api_ready || kubernetes_died apiserver 'the API server did not start'
    start kube-controller-manager KILL "$folder/controllers.log" kube-controller-manager --kubeconfig "$KUBECONFIG" \
        --service-account-private-key-file "$folder/accounts.key" --leader-elect=false \
        --root-ca-file "$folder/apiserver/apiserver.crt"
    start kube-scheduler KILL "$folder/scheduler.log" kube-scheduler --kubeconfig "$KUBECONFIG" --leader-elect=false

    start_containerd "$folder"
    start_kubelet "$folder"
    wait_until 60 node_ready || kubernetes_died kubelet 'the node did not become ready'
    wait_until 30 account_there || kubernetes_died controllers 'the controllers did not start'
}

api_ready() { kubectl get --raw /readyz >/dev/null 2>&1; }
node_ready() { [[ $(kubectl get nodes --no-headers 2>/dev/null) == *' Ready '* ]]; }
# Without it no pod is admitted.
account_there() { kubectl get serviceaccount default >/dev/null 2>&1; }

kubernetes_died() { # LOG WHAT
    log_tail "$WORK/kubernetes/$1.log"
    die "$2"
}

# The node's address, and ways from and to pods.
open_network() {
    ip link set lo up
    ip link add node0 type bridge
    ip address add "$NODE_ADDRESS/24" dev node0
    ip link set node0 up
    # Kubernetes wants a default route; this one leads nowhere.
    ip route add default via "$NODE_ADDRESS"
    printf 1 >/proc/sys/net/ipv4/ip_forward
    cat >"$WORK/kubernetes/cni/pods.conflist" <<JSON
{ "cniVersion": "0.4.0", "name": "pods", "plugins": [{
    "type": "bridge", "bridge": "pods0", "isGateway": true,
    "ipam": { "type": "host-local", "dataDir": "$WORK/kubernetes/addresses",
              "ranges": [[{ "subnet": "10.88.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] } }] }
JSON
}

start_containerd() { # FOLDER
    CONTAINERD=$1/containerd.sock
    cat >"$1/containerd.toml" <<TOML
version = 2
root = "$1/containers"
state = "$1/containers.state"
[grpc]
  address = "$CONTAINERD"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  # Not every machine lets its root protect processes from the kernel's hunger for memory.
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "$1/cni"
TOML
    start containerd TERM "$1/containerd.log" containerd --config "$1/containerd.toml"
    wait_until 30 containerd_answers || kubernetes_died containerd 'containerd did not start'
}
containerd_answers() { ctr --address "$CONTAINERD" version >/dev/null 2>&1; }

# load_image ARCHIVE: gives the node an image, as `docker save` writes it.
load_image() {
    ctr --address "$CONTAINERD" --namespace k8s.io images import "$1" >>"$WORK/images.log" 2>&1 || {
        log_tail "$WORK/images.log"
        die "containerd refused $1"
    }
}

start_kubelet() { # FOLDER
    local setting value
    # The kubelet would change the kernel of the whole machine; here it finds all as it wants it.
    while read -r setting value; do
        printf '%s\n' "$value" >"$1/sysctl/${setting//\//.}"
        mount --bind "$1/sysctl/${setting//\//.}" "/proc/sys/$setting"
    done <<'SYSCTL'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SYSCTL
    cat >"$1/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$CONTAINERD
cgroupDriver: cgroupfs
cgroupRoot: /$CLUSTER_CGROUP
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
resolvConf: ""
evictionHard: { memory.available: 100Mi }
authentication: { anonymous: { enabled: true }, webhook: { enabled: false } }
authorization: { mode: AlwaysAllow }
YAML
    start kubelet TERM "$1/kubelet.log" kubelet --config "$1/kubelet.yaml" --kubeconfig "$KUBECONFIG" \
        --root-dir "$1/kubelet" --cert-dir "$1/kubelet.certificates" --hostname-override node --node-ip "$NODE_ADDRESS"
}

# open_cgroups and close_cgroups: around it all, from outside.
export CLUSTER_CGROUP=${CLUSTER_CGROUP:-outrigger-cluster-$$}
open_cgroups() {
    local controller file
    for controller in /sys/fs/cgroup /sys/fs/cgroup/*/; do
        # Of version 1 one folder for each controller, of version 2 one for all.
        [[ -e $controller/cgroup.procs ]] || continue
        mkdir -p "$controller/$CLUSTER_CGROUP"
        for file in cpuset.cpus cpuset.mems; do
            [[ ! -e $controller/$file || ! -e $controller/$CLUSTER_CGROUP/$file ]] ||
                cat "$controller/$file" >"$controller/$CLUSTER_CGROUP/$file"
        done
    done
}
close_cgroups() {
    local tries
    for ((tries = 0; tries < 50; tries++)); do
        find /sys/fs/cgroup -depth -type d -path "*/$CLUSTER_CGROUP*" -exec rmdir {} + 2>/dev/null
        [[ -n $(find /sys/fs/cgroup -maxdepth 2 -type d -name "$CLUSTER_CGROUP") ]] || return 0
        sleep 0.1
    done
}
