# shellcheck shell=bash
# Server programs of another Debian release, in a folder of their own, beside what the system has.
#
# Packages are fetched with the system's apt (its proxy, its signature checks) but with lists and
# a cache of their own, and are unpacked, not installed: no maintainer script runs, no root is
# needed and nothing outside the folder changes. Each program becomes a small script that starts it
# with the C library and the other libraries from the folder, because it was built for those.
#
# Needs common.sh and find.sh.

# debian_mirror: DEBIAN_MIRROR, or else where this system gets its own Debian packages.
debian_mirror() {
    local mirror=${DEBIAN_MIRROR:-}
    # shellcheck disable=SC2016 # for apt-get to expand
    [[ -n $mirror ]] || mirror=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' \
        'Created-By: Packages' | sed -n 's/^Debian Debian //p' | head -n 1)
    [[ -n $mirror ]] || die "this system gets no packages from Debian; set DEBIAN_MIRROR to the URL of a Debian mirror"
    printf '%s' "$mirror"
}

# install_debian RELEASE: fills its folder, unless that is complete already.
install_debian() {
    local release=$1 folder recipe began=$EPOCHREALTIME
    folder=$(servers_folder "$release")
    # What the folder was made by: another recipe makes another folder.
    recipe=$(sha256sum <"${BASH_SOURCE[0]}")
    if [[ $(cat -- "$folder/recipe" 2>/dev/null) == "$recipe" ]]; then
        return 0
    fi
    type -P apt-get dpkg-deb flock >/dev/null ||
        die "servers of another Debian release need this system's apt-get, dpkg-deb and flock"
    # Whatever the developer's umask, the user that runs the servers must be able to read this.
    umask 022
    mkdir -p "$ROOT/.cache/servers"
    (
        flock 9
        # Somebody else may have made it while this waited.
        if [[ $(cat -- "$folder/recipe" 2>/dev/null) != "$recipe" ]]; then
            # Left behind by runs that were killed; a run that lives holds the lock.
            rm -rf -- "$ROOT/.cache/servers/".new.*
            new=$(mktemp -d "$ROOT/.cache/servers/.new.XXXXXX")
            trap 'rm -rf -- "$new"' EXIT
            trap 'exit 130' INT
            trap 'exit 143' TERM
            chmod 755 "$new"
            fetch_debian "$release" "$new"
            unpack_debian "$new"
            programs_debian "$new"
            versions_debian "$new" >"$new/versions"
            printf '%s\n' "$recipe" >"$new/recipe"
            rm -rf -- "$folder"
            mv -T -- "$new" "$folder"
            say "ready in $(seconds_since "$began"): $(paste -sd , "$folder/versions" |
                sed 's/,/, /g') (Debian $release), in ${folder#"$ROOT/"}"
        fi
    ) 9>"$ROOT/.cache/servers/.lock"
}

# fetch_debian RELEASE FOLDER: the packages and all they depend on.
fetch_debian() {
    local apt=$2/apt keyring mirror options
    mirror=$(debian_mirror)
    for keyring in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
        [[ ! -e $keyring ]] || break
    done
    say "fetching PostgreSQL, RabbitMQ and PgBouncer of Debian $1 (once; about 120 MB)"
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
    # Nothing counts as installed, so apt fetches every library, the C library included.
    : >"$apt/state/status"
    printf '%s\n' 'Types: deb' 'Targets: Packages' "URIs: $mirror" "Suites: $1" \
        'Components: main' "Signed-By: $keyring" >"$apt/debian.sources"
    options=(
        -qq
        -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/state/status"
        -o "Dir::Cache=$apt/cache" -o "Dir::Etc::sourcelist=$apt/debian.sources"
        -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
        -o APT::Default-Release=
        -o Acquire::Retries=3
    )
    apt-get "${options[@]}" --error-on=any update </dev/null >&2
    apt-get "${options[@]}" install -y --download-only --no-install-recommends -o Debug::NoLocking=1 \
        postgresql rabbitmq-server pgbouncer </dev/null >&2
}

# unpack_debian FOLDER: keeps what the servers read. The rest (systemd, perl, passwd and other
# things that packages name for their maintainer scripts) would only be setuid programs and bulk.
unpack_debian() {
    local all=$1/all package
    mkdir "$all"
    for package in "$1"/apt/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$all"
    done
    mkdir -p "$1/usr/lib" "$1/usr/share" "$1/usr/sbin"
    mv "$all"/usr/lib/{*-linux-gnu*,erlang,postgresql,rabbitmq} "$1/usr/lib/"
    mv "$all"/usr/share/postgresql "$1/usr/share/"
    mv "$all"/usr/sbin/pgbouncer "$1/usr/sbin/"
    rm -rf -- "$all" "$1/apt" "$1"/usr/lib/*-linux-gnu*/{perl*,libperl*,gconv,systemd}
}

# programs_debian FOLDER: makes them run, and collects them in FOLDER/bin.
programs_debian() {
    local libraries loader program folder name up magic
    libraries=$(echo "$1"/usr/lib/*-linux-gnu*)
    loader=$(echo "$libraries"/ld-linux*.so.*)
    [[ -f $loader ]] || die "no dynamic loader in $libraries"
    mkdir "$1/bin" "$1/loader"

    while IFS= read -r program; do
        IFS= LC_ALL=C read -r -N 4 magic <"$program" 2>/dev/null || true
        [[ $magic == $'\x7fELF' ]] || continue
        folder=${program%/*} name=${program##*/}
        up=$(realpath --relative-to="$folder" "$1")
        mkdir -p "$folder/.elf"
        mv "$program" "$folder/.elf/$name"
        # One name for the loader per program: it is what `ps` and `top` will show.
        ln -sf "../${loader#"$1/"}" "$1/loader/$name"
        cat >"$program" <<SCRIPT
#!/bin/sh
self=\$(readlink -f -- "\$0")
here=\${self%/*}
exec "\$here/$up/loader/$name" --argv0 "\$self" --library-path "\$here/$up/${libraries#"$1/"}" \\
    "\$here/.elf/$name" "\$@"
SCRIPT
        chmod 755 "$program"
    done < <(find "$1"/usr/lib/erlang "$1"/usr/lib/postgresql/*/bin "$1/usr/sbin" \
        -type f -perm -u+x -path '*bin/*')

    # It knows its place only where Debian installs it.
    # shellcheck disable=SC2016 # for that script to expand
    sed -i 's|=/usr/lib/erlang$|=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")|' \
        "$1"/usr/lib/erlang/bin/erl

    for program in "$1"/usr/lib/postgresql/*/bin/* "$1"/usr/lib/erlang/bin/{epmd,erl,escript} \
        "$1/usr/sbin/pgbouncer"; do
        ln -s "../${program#"$1/"}" "$1/bin/"
    done
    # RabbitMQ's scripts take Erlang from PATH.
    for program in "$1"/usr/lib/rabbitmq/bin/rabbitmq{-server,ctl,-diagnostics,-plugins,-queues}; do
        cat >"$1/bin/${program##*/}" <<SCRIPT
#!/bin/sh
here=\$(dirname -- "\$(readlink -f -- "\$0")")
PATH=\$here:\$PATH
export PATH
exec "\$here/../${program#"$1/"}" "\$@"
SCRIPT
        chmod 755 "$1/bin/${program##*/}"
    done
}

# versions_debian FOLDER: asks the programs, which also shows that they run here.
versions_debian() {
    local bin=$1/bin
    "$bin/postgres" --version | sed 's/^postgres (\(PostgreSQL\)) \([^ ]*\).*/\1 \2/'
    # Not `rabbitmqctl version`: that needs a node's network. Erlang's cryptography is a library of
    # its own, so it is tried too.
    ERL_LIBS=$(echo "$1"/usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins) "$bin/erl" -noshell -eval '
        ok = application:load(rabbit),
        {ok, Version} = application:get_key(rabbit, vsn),
        ok = crypto:start(),
        io:format("RabbitMQ ~s~nErlang ~s~n", [Version, erlang:system_info(otp_release)]),
        halt().' </dev/null
    "$bin/pgbouncer" --version | sed -n 's/^PgBouncer /&/p'
}
