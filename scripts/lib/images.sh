# shellcheck shell=bash
# Container images, built by Buildah in a store of their own.
#
# Needs common.sh, debian.sh and root.

IMAGES=$ROOT/.cache/images

image() { buildah --root "$IMAGES/store" --runroot "$IMAGES/run" "$@"; }

# build_outrigger NAME: the image of the Dockerfile, as NAME.
build_outrigger() {
    local base share=()
    mkdir -p "$IMAGES"
    while read -r base; do
        base_image "$base"
    done < <(sed -n 's/^FROM \([^ ]*\).*/\1/p' "$ROOT/Dockerfile")
    # What cargo has fetched here already, and the authorities that this machine trusts.
    mkdir -p "${CARGO_HOME:-$HOME/.cargo}/registry"
    share=(--volume "${CARGO_HOME:-$HOME/.cargo}/registry:/usr/local/cargo/registry"
        --volume /etc/ssl/certs:/etc/ssl/certs:ro)
    say "building $1 (about eight minutes, if nothing of it is there yet)"
    # The format decides whether the health check gets into the image.
    image bud --format docker --pull-never --layers --network host "${share[@]}" --tag "$1" "$ROOT" \
        >"$IMAGES/build.log" 2>&1 </dev/null || {
        tail -n 15 -- "$IMAGES/build.log" | sed 's/^/    /' >&2
        die "the image could not be built (all of it: ${IMAGES#"$ROOT/"}/build.log)"
    }
}

# base_image NAME: fetches it, or puts something of the same kind in its place where no registry of images can be reached.
base_image() {
    local container folder
    [[ -z $(image images --quiet "$1" 2>/dev/null) ]] || return 0
    if image pull --quiet "docker://$1" >/dev/null 2>&1; then
        return 0
    fi
    say "no registry has $1 for this machine: making a stand-in of Debian's packages"
    container=$(image from scratch)
    folder=$(image mount "$container")
    case $1 in
        */rust:*-trixie) stand_in_rust "$folder" "$container" ;;
        */cc-debian13:nonroot) stand_in_distroless "$folder" "$container" ;;
        *) die "there is no stand-in for $1: teach ${BASH_SOURCE[0]#"$ROOT/"}" ;;
    esac
    image umount "$container" >/dev/null
    image commit --quiet --rm "$container" "$1" >/dev/null
}

# Debian with a C compiler, and the toolchain that this machine builds with.
stand_in_rust() { # FOLDER CONTAINER
    debian_folder "$1" gcc,g++,make,perl,pkg-config,libc6-dev,libssl-dev,ca-certificates
    mkdir -p "$1/usr/local/rust" "$1/usr/local/cargo"
    cp -a -- "$(cd "$ROOT" && rustc --print sysroot)/." "$1/usr/local/rust/"
    image config --env CARGO_HOME=/usr/local/cargo \
        --env PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$2"
}

# The packages that distroless is made of, unpacked and no more.
stand_in_distroless() { # FOLDER CONTAINER
    local whole package
    whole=$(mktemp -d "$IMAGES/debian.XXXXXX")
    debian_folder "$whole" ca-certificates,libssl3t64,libgcc-s1,libgomp1,libstdc++6,netbase,tzdata,media-types
    cp -L /etc/resolv.conf "$whole/etc/"
    cp /etc/apt/apt.conf.d/*proxy* "$whole/etc/apt/apt.conf.d/" 2>/dev/null || true
    chroot "$whole" sh -c 'cd /tmp && apt-get -qq -o APT::Sandbox::User=root update &&
        apt-get -qq -o APT::Sandbox::User=root download \
        base-files ca-certificates gcc-14-base libc6 libgcc-s1 libgomp1 libssl3t64 libstdc++6 libzstd1 \
        media-types netbase tzdata' >/dev/null
    for package in "$whole"/tmp/*.deb; do
        dpkg-deb --extract "$package" "$1"
    done
    mkdir -p "$1/etc/ssl/certs" "$1/tmp"
    chmod 1777 "$1/tmp"
    cp -- "$whole/etc/ssl/certs/ca-certificates.crt" "$1/etc/ssl/certs/"
    install -d -o 65532 -g 65532 "$1/home/nonroot"
    printf '%s\n' 'root:x:0:0:root:/root:/sbin/nologin' 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' \
        >"$1/etc/passwd"
    printf '%s\n' root:x:0: nonroot:x:65532: >"$1/etc/group"
    rm -rf -- "$whole"
    image config --user 65532 --workingdir /home/nonroot --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
        --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$2"
}

debian_folder() { # FOLDER PACKAGES
    debootstrap --variant=minbase --include="$2" trixie "$1" "$(debian_mirror)" >"$IMAGES/debian.log" 2>&1 || {
        tail -n 5 -- "$IMAGES/debian.log" | sed 's/^/    /' >&2
        die 'debootstrap failed'
    }
}

# pause_image: what holds a pod's namespaces. It has only to wait.
pause_image() {
    local container program
    program=$(mktemp "$IMAGES/pause.XXXXXX")
    cc -static -Os -x c -o "$program" - <<'C'
#include <signal.h>
#include <unistd.h>
static void end(int signal) { (void)signal; _exit(0); }
int main(void) {
    signal(SIGTERM, end);
    signal(SIGINT, end);
    for (;;) pause();
}
C
    container=$(image from scratch)
    image copy --quiet --chmod 755 "$container" "$program" /pause >/dev/null
    image config --entrypoint '["/pause"]' "$container"
    image commit --quiet --rm "$container" localhost/pause:1 >/dev/null
    rm -f -- "$program"
}

# bank_image NAME SCRIPT TRANSFER PGBENCH: a service that runs SCRIPT with a shell and pgbench.
bank_image() {
    local container folder program library
    container=$(image from scratch)
    folder=$(image mount "$container")
    for program in /bin/sh "$4"; do
        install -D -- "$(readlink -f -- "$program")" "$folder/bin/${program##*/}"
        # Libraries at the places that they have here.
        for library in $(ldd "$program" | grep -o '/[^ )]*'); do
            install -D -- "$(readlink -f -- "$library")" "$folder$library"
        done
    done
    install -m 755 -- "$2" "$folder/bank"
    install -m 644 -- "$3" "$folder/transfer.sql"
    image umount "$container" >/dev/null
    image config --entrypoint '["/bin/sh", "/bank"]' --env PATH=/bin "$container"
    image commit --quiet --rm "$container" "$1" >/dev/null
}

# save_image NAME FILE
save_image() {
    rm -f -- "$2"
    image push --quiet "$1" "docker-archive:$2:$1"
}
