//! The servers that tests of this binary share.

use tokio::sync::OnceCell;

use crate::authority::{install, pem, write};
use crate::support::postgres::{Postgres, free_port, give_to_server};
use crate::support::rabbitmq::RabbitMq;

/// The superuser comes in without TLS, so that tests can set things up.
const HBA: &str = "\
local all all trust
hostnossl all postgres all trust
hostnossl all plainuser all trust
hostssl all tlsuser all trust
hostssl all certuser all cert
hostssl all rotating all scram-sha-256 clientcert=verify-ca
";

const ROLES: &str = "create role plainuser login; create role tlsuser login; create role certuser login; \
                     create role rotating login superuser password 'first'";

/// A PostgreSQL server with a certificate for `localhost`, signed by `ca`, whose clients it trusts.
pub async fn postgres(certificate: &'static str) -> Postgres {
    let settings = [
        "ssl=on",
        "ssl_cert_file=@DIR@/server.pem",
        "ssl_key_file=@DIR@/server.key",
        "ssl_ca_file=@DIR@/ca.pem",
        "hba_file=@DIR@/hba",
    ];
    let server = Postgres::start_prepared(&settings.map(str::to_owned), move |dir| {
        install(dir, certificate, "ca");
        write(dir, "hba", HBA);
    })
    .await;
    let admin = server.client("postgres").await;
    admin.batch_execute(ROLES).await.unwrap();
    server
}

/// Gives the server another certificate, and another authority to trust.
pub async fn reload(server: &Postgres, certificate: &str, authority: &str) {
    let dir = server.socket_directory();
    install(dir, certificate, authority);
    give_to_server(dir);
    let admin = server.client("postgres").await;
    let reload = admin.batch_execute("select pg_reload_conf()").await;
    reload.unwrap();
}

/// A connection string without anything about TLS. Any host name leads there.
pub fn to(server: &Postgres, host: &str, user: &str) -> String {
    format!(
        "host={host} hostaddr=127.0.0.1 port={} dbname=postgres user={user}",
        server.port()
    )
}

/// The server with a good certificate.
pub async fn good_postgres() -> &'static Postgres {
    static SERVER: OnceCell<Postgres> = OnceCell::const_new();
    SERVER.get_or_init(|| postgres("server")).await
}

/// A broker with a TLS port for each kind of certificate.
pub struct TlsRabbitMq {
    pub node: RabbitMq,
    /// A certificate for `localhost`; clients may show one.
    pub tls: u16,
    /// A certificate that is over.
    pub expired: u16,
    /// Clients must show a certificate.
    pub mutual: u16,
}

/// EXTERNAL is offered only if the general options ask for certificates, too.
const BROKER: &str = "
ssl_options.verify = verify_peer
ssl_options.cacertfile = @DIR@/ca.pem
ssl_cert_login_from = common_name
auth_mechanisms.1 = EXTERNAL
auth_mechanisms.2 = PLAIN
";

/// Users, and listeners with options of their own, which the configuration file has no words for.
const PREPARE: &str = r#"
{ok, _} = application:ensure_all_started(ssl),
Add = fun({Port, Name, Required}) ->
    File = fun(End) -> "@DIR@/" ++ Name ++ End end,
    ok = rabbit_networking:start_ssl_listener({"127.0.0.1", Port}, [
        {cacertfile, "@DIR@/ca.pem"}, {certfile, File(".pem")}, {keyfile, File(".key")},
        {verify, verify_peer}, {fail_if_no_peer_cert, Required}], 2)
end,
lists:foreach(Add, [{@TLS@, "server", false}, {@EXPIRED@, "expired", false}, {@MUTUAL@, "server", true}]),
lists:foreach(fun(User) ->
    ok = rabbit_auth_backend_internal:add_user(User, <<"first">>, <<"test">>),
    ok = rabbit_auth_backend_internal:set_permissions(User, <<"/">>, <<"^$">>, <<".*">>, <<"^$">>, <<"test">>)
end, [<<"certuser">>, <<"rotating">>]).
"#;

pub async fn broker() -> TlsRabbitMq {
    let node = RabbitMq::start_prepared(BROKER, |dir| {
        for name in [
            "ca.pem",
            "server.pem",
            "server.key",
            "expired.pem",
            "expired.key",
        ] {
            write(dir, name, pem(name));
        }
        write(dir, "enabled_plugins", "[rabbitmq_auth_mechanism_ssl].\n");
    })
    .await;
    let [tls, expired, mutual] = [(); 3].map(|()| free_port());
    let dir = node.dir().display().to_string();
    let mut script = PREPARE.replace("@DIR@", &dir);
    for (name, port) in [("@TLS@", tls), ("@EXPIRED@", expired), ("@MUTUAL@", mutual)] {
        script = script.replace(name, &port.to_string());
    }
    node.ctl_ok(&["eval", &script]);
    TlsRabbitMq {
        node,
        tls,
        expired,
        mutual,
    }
}

/// The broker that tests share.
pub async fn shared_broker() -> &'static TlsRabbitMq {
    static BROKER: OnceCell<TlsRabbitMq> = OnceCell::const_new();
    BROKER.get_or_init(broker).await
}
