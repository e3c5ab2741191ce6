import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.jdbc.datasource.DriverManagerDataSource;
import org.springframework.jdbc.support.JdbcTransactionManager;
import org.springframework.transaction.support.TransactionTemplate;

/**
 * Orders whose changes are events. Each change and its event are one transaction.
 *
 * <p>With Spring Boot the template and the transaction manager are injected, and the methods are annotated with
 * {@code @Transactional} instead of calling {@code transaction}.
 */
public final class Orders {
    static final class Refused extends RuntimeException {
        Refused(String why) {
            super(why);
        }
    }

    private final JdbcTemplate jdbc;
    private final TransactionTemplate transaction;

    Orders(JdbcTemplate jdbc, TransactionTemplate transaction) {
        this.jdbc = jdbc;
        this.transaction = transaction;
    }

    // A column list and nothing clever: the rest of the columns have defaults. The cast is for JDBC, which
    // sends text. A real service writes the JSON with Jackson.
    private void addEvent(String type, long order, String data) {
        jdbc.update("insert into outbox (type, subject, key, data) values (?, ?, ?, ?::jsonb)",
                type, Long.toString(order), "order-" + order, data);
    }

    void place(long order, String customer, String total) {
        transaction.executeWithoutResult(status -> {
            jdbc.update("insert into orders (id, customer, total) values (?, ?, ?::numeric)", order, customer, total);
            addEvent("order.placed", order,
                    "{\"id\": %d, \"customer\": \"%s\", \"total\": \"%s\"}".formatted(order, customer, total));
        });
    }

    void pay(long order) {
        transaction.executeWithoutResult(status -> {
            // The update locks the order until the commit, and comes before the event: so events of one order
            // are in the order of the commits.
            jdbc.update("update orders set status = 'paid' where id = ?", order);
            addEvent("order.paid", order, "{\"id\": %d}".formatted(order));
        });
    }

    void cancel(long order) {
        transaction.executeWithoutResult(status -> {
            String before = jdbc.queryForObject("update orders o set status = 'cancelled' from orders before "
                    + "where o.id = ? and before.id = o.id returning before.status", String.class, order);
            addEvent("order.cancelled", order, "{\"id\": %d}".formatted(order));
            if ("paid".equals(before)) {
                // An exception that leaves the template rolls back.
                throw new Refused("order " + order + " is paid");
            }
        });
    }

    public static void main(String[] args) {
        var source = new DriverManagerDataSource(System.getenv("JDBC_URL"));
        var orders = new Orders(new JdbcTemplate(source), new TransactionTemplate(new JdbcTransactionManager(source)));
        orders.place(42, "Zoë 🐇", "99.90");
        orders.pay(42);
        try {
            orders.cancel(42);
        } catch (Refused refusal) {
            // The event went with the change.
            new PrintStream(System.out, true, StandardCharsets.UTF_8).println(refusal.getMessage());
        }
    }
}
