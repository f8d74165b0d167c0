import Ampoule
import NoteMarking
import SwiftUI

@main
struct NoteApp: App {
    var body: some Scene {
        WindowGroup { NoteView() }
    }
}

/// Tells SwiftUI what the logic shows.
@MainActor
final class Screen: ObservableObject {
    @Published private(set) var shown = Shown()
    private lazy var logic = NoteScreen { [weak self] in self?.shown = $0 }

    func open() async { await logic.open(.resource("clinical-en.int8.safetensors")) }
    func write(_ note: String) { logic.write(note) }
    func trim() { logic.trim() }
}

struct NoteView: View {
    @Environment(\.scenePhase) private var phase
    @StateObject private var screen = Screen()
    @State private var note = "Started on lisinopril for hypertension; developed angioedema."

    var body: some View {
        VStack(alignment: .leading, spacing: 12) {
            TextEditor(text: $note)
                .font(.body)
                // The keyboard learns nothing of a note.
                .disableAutocorrection(true)
                .accessibilityLabel("Note")
                .accessibilityHint("Drugs and diseases are marked below as you type")
            ScrollView {
                marked
                    .frame(maxWidth: .infinity, alignment: .leading)
                    .accessibilityElement()
                    .accessibilityLabel("Marked note")
                    .accessibilityValue(screen.shown.pieces.map(\.spoken).joined())
            }
            if let problem = screen.shown.problem {
                Text(problem)
                    .foregroundColor(.red)
            }
            Text(screen.shown.figures)
                .font(.footnote.monospacedDigit())
                .foregroundColor(.secondary)
                .accessibilityLabel("What the last key cost: \(screen.shown.figures)")
        }
        .padding()
        // Else the list of recent apps keeps a picture of the note.
        .overlay { if phase != .active { Color(.systemBackground).ignoresSafeArea() } }
        .task {
            await screen.open()
            screen.write(note)
        }
        .onChange(of: note) { screen.write($0) }
        .onReceive(NotificationCenter.default.publisher(for: UIApplication.didReceiveMemoryWarningNotification)) { _ in screen.trim() }
    }

    /// Underlined and bold as well as coloured, for those who see no colours; every font scales with the user's setting.
    private var marked: Text {
        screen.shown.pieces.reduce(Text("")) { text, piece in
            guard let label = piece.label else { return text + Text(piece.text) }
            return text + Text(piece.text).bold().underline().foregroundColor(label == "Chemical" ? .blue : .purple)
        }
    }
}
