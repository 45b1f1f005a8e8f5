// The mock driver's graphs, included by cuda.c. A graph is a chain of nodes. As cuda.h says, a graph with conditional
// nodes outlives the executable graph made from it, and has one such graph at a time.

typedef struct Graph {
  Op *first, *last;
  struct Graph* root;  // owns the conditions of all its bodies
  struct Graph* made_from;
  Condition* conditions;
  int instances;
} Graph;

R cuStreamEndCapture(void* s, void** g) {
  ENTER;
  Stream* q = s;
  Graph* graph = calloc(1, sizeof *graph);
  graph->first = q->first;
  q->first = 0;
  q->last = &q->first;
  q->capturing = 0;
  *g = graph;
  live[GRAPHS]++;
  return OK;
}
R cuGraphCreate(void** g, unsigned f) {
  ENTER;
  if (f) return INVALID;
  Graph* graph = calloc(1, sizeof *graph);
  graph->root = graph;
  *g = graph;
  live[GRAPHS]++;
  return OK;
}

#ifndef MOCK_PLAIN
R cuGraphConditionalHandleCreate(uint64_t* handle, void* g, void* context, unsigned initial, unsigned flags) {
  ENTER;
  Graph* graph = g;
  if (context != &context_handle || flags != 1 || graph->root != graph) return INVALID;
  Condition* condition = calloc(1, sizeof *condition);
  condition->initial = initial;
  condition->value = 77;  // garbage until a RESET
  condition->next = graph->conditions;
  graph->conditions = condition;
  *handle = (uintptr_t)condition;
  return OK;
}

typedef struct { Launch launch; void *kernel, *context; } KernelNode;
typedef struct { uint64_t handle; unsigned kind, bodies; Graph** graphs; void* context; } ConditionNode;
typedef struct {
  unsigned kind, reserved0[3];
  union { uint64_t zeros[29]; KernelNode kernel; ConditionNode condition; } node;
  uint64_t reserved2;
} NodeParams;
_Static_assert(sizeof(NodeParams) == 256 && sizeof(KernelNode) == 72 && sizeof(ConditionNode) == 32, "as in cuda.h");

static R condition_node(Op* op, Graph* graph, ConditionNode* p) {
  Condition* condition = graph->root->conditions;
  while (condition && (uintptr_t)condition != p->handle) condition = condition->next;
  if (!condition || condition->used || p->kind != 0 || p->bodies != 1 || p->context != &context_handle) return INVALID;
  condition->used = 1;
  Graph* body = calloc(1, sizeof *body);
  body->root = graph->root;
  p->graphs = malloc(sizeof *p->graphs);
  *p->graphs = body;
  *op = (Op){.kind = IF, .dst = condition, .src = p->graphs, .body = body};
  return OK;
}
R cuGraphAddNode(void** node, void* g, void* const* after, size_t count, NodeParams* p) {
  ENTER;
  Graph* graph = g;
  size_t used = p->kind == 13 ? sizeof p->node.condition : sizeof p->node.kernel;
  const char* bytes = (char*)&p->node;
  for (size_t i = used; i < sizeof p->node; ++i) if (bytes[i]) return INVALID;
  if (p->reserved0[0] || p->reserved0[1] || p->reserved0[2] || p->reserved2) return INVALID;
  // The tests' graphs are chains.
  if (count != (graph->last ? 1 : 0) || (count && after[0] != graph->last)) return INVALID;
  Op op;
  R result = p->kind == 13 ? condition_node(&op, graph, &p->node.condition)
             : p->kind == 0 ? launch(&op, &p->node.kernel.launch) : INVALID;
  if (result != OK) return result;
  Op* added = malloc(sizeof *added);
  *added = op;
  if (graph->last) graph->last->next = added;
  else graph->first = added;
  *node = graph->last = added;
  return OK;
}
#endif

// Appends copies of nodes to a list, each body after its condition. Returns their number and moves `end`.
static uint32_t copy(const Op* op, Op*** end) {
  uint32_t count = 0;
  for (; op; op = op->next, ++count) {
    Op* made = malloc(sizeof *made);
    *made = *op;
    made->next = 0;
    **end = made;
    *end = &made->next;
    if (op->kind == IF) count += made->value = copy(op->body->first, end);
  }
  return count;
}

// The nodes of the last executable graph as text.
static char shape[4096];
static const Op* describe(const Op* op, long most) {
  for (; op && most; --most) {
    char* text = shape + strlen(shape);
    size_t room = sizeof shape - strlen(shape);
    if (op->kind == IF) {
      snprintf(text, room, "if( ");
      const Op* next = describe(op->next, op->value);
      most -= op->value;
      strncat(shape, ") ", sizeof shape - strlen(shape) - 1);
      op = next;
      continue;
    }
    snprintf(text, room, op->kind == SET_CONDITIONS ? "set%u " : op->kind == COPY ? "shift " : "%u ", op->value);
    op = op->next;
  }
  return op;
}

static void free_ops(Op* op) {
  while (op) {
    Op* next = op->next;
    if (op->body) {
      free_ops(op->body->first);
      free(op->body);
      free(op->src);
    }
    free(op);
    op = next;
  }
}
R cuGraphInstantiateWithFlags(void** e, void* g, unsigned long long f) {
  (void)f;
  ENTER;
  Graph* graph = g;
  for (Condition* c = graph->conditions; c; c = c->next) if (!c->used || graph->instances) return INVALID;
  Graph* made = calloc(1, sizeof *made);
  Op** end = &made->first;
  for (Condition* c = graph->conditions; c; c = c->next) {
    Op* begin = calloc(1, sizeof *begin);
    *begin = (Op){.kind = RESET, .dst = c};
    *end = begin;
    end = &begin->next;
  }
  Op** nodes = end;
  copy(graph->first, &end);
  for (Op* op = *nodes; op; op = op->next) op->body = 0;
  *shape = 0;
  describe(*nodes, -1);
  if (graph->conditions) {
    made->made_from = graph;
    graph->instances++;
  }
  *e = made;
  live[GRAPHS]++;
  return OK;
}
R cuGraphDestroy(void* g) {
  Graph* graph = g;
  for (Condition* c = graph->conditions; c; c = c->next) c->dead = 1;
  free_ops(graph->first);
  free(graph);
  live[GRAPHS]--;
  return sticky;
}
R cuGraphExecDestroy(void* e) {
  Graph* made = e;
  if (made->made_from) made->made_from->instances--;
  free_ops(made->first);
  free(made);
  live[GRAPHS]--;
  return sticky;
}
R cuGraphLaunch(void* g, void* s) {
  ENTER;
  counts[GRAPH_LAUNCHES]++;
  for (Op* op = ((Graph*)g)->first; op; op = op->next) push(stream(s), *op);
  return OK;
}
